"""The other quantizers, in a virtual environment of their own so that octet's stays free of them."""
