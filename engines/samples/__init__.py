"""Example inputs: untrusted files, checked and kept in one layout, cut into splits and batches."""
