"""Blobs by content address, in a folder or in S3."""
