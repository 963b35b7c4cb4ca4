"""A short load on a running octet, at any address: `make loadtest URL=http://127.0.0.1:8000 MODEL=digits`."""
