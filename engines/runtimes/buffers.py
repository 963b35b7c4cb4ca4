"""Buffers as OpenVINO reads them in place."""

import numpy as np

from engines.errors import EngineRunError
from engines.model.tensors import Array

_ALIGNMENT_BYTES = 64
"""A cache line, and the width of AVX512."""


def aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Zeros that start on a cache line, which OpenVINO reads in place."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


def check_int32(name: str, array: Array) -> None:
    """Refuses integers that OpenVINO would cut: on the processor it computes all of them in 32 bits."""
    limits = np.iinfo(np.int32)
    for value in (array.min(), array.max()) if array.size else ():
        if not limits.min <= int(value) <= limits.max:
            raise EngineRunError(
                f"input {name!r} holds {int(value)}, but this engine computes in 32-bit integers; "
                f"send values from {limits.min} to {limits.max}."
            )
