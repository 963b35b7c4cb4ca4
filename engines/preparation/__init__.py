"""Rewriting of an FP32 graph before it is observed and quantized; every pass works on a private copy in place."""
