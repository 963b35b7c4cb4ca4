"""TensorRT on NVIDIA GPUs. Only `library` imports the bindings; import anything here only where it may be missing."""
