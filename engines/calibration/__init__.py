"""What activations reach: histograms that merge exactly, and thresholds chosen from them."""
