"""What every engine of a version has to reproduce before it answers, and what batching must not change."""
