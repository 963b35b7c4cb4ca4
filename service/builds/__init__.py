"""Builds: accepted uploads, durable phases in sandboxes, and who carries them out."""
