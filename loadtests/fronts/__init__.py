"""Other servers in front of the same trivial model, each started in a virtual environment of its own."""
