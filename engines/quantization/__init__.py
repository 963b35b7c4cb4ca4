"""From thresholds to a Q/DQ graph: placement, evened channels, fitted weights, mixed precision."""
