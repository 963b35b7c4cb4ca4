"""From waiting rows to batches in an engine, and the answers back to whoever asked."""
