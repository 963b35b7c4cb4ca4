"""Versions in memory: which are wanted, how they get there and away, and what happens when one breaks."""
