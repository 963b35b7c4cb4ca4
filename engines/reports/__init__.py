"""What a build tells people: what was tried, what was proven, what it costs to run."""
