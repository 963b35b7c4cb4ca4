"""What a model is: untrusted bytes, checked and typed, and how its graph hangs together."""
