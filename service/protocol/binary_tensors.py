"""The data of one tensor as the binary tensor extension has it: little-endian, row-major, nothing between.

A BOOL is a byte, 0 or 1; a BF16 the upper half of an FP32; an element of BYTES its length as 32 bits, then so
many bytes. Nothing but BYTES is copied, in either direction.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import math
import struct
import sys

import numpy as np

from engines.model.tensors import Array, TensorSpec
from service.errors import BadRequestError
from service.protocol.datatypes import datatype

_LENGTH = struct.Struct("<I")
_SWAPPED = sys.byteorder == "big"


def from_binary(data: memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The tensor of this shape whose bytes `data` are all: a view of them, except for BYTES.

    Raises:
        BadRequestError: there are more or fewer bytes than the shape says, or some are no value of the type.
    """
    if spec.dtype.hasobject:
        return _elements(data, shape, spec)
    want = math.prod(shape) * spec.dtype.itemsize
    if len(data) != want:
        raise BadRequestError(
            f"input '{spec.name}' has {len(data)} bytes of binary data, its shape {list(shape)} of "
            f"{datatype(spec.dtype)} takes {want}; send as many as the shape says."
        )
    values: Array = np.frombuffer(data, spec.dtype) if data else np.empty(0, spec.dtype)
    if spec.dtype == np.bool_ and (values.view(np.uint8) > 1).any():
        index = int((values.view(np.uint8) > 1).argmax())
        raise BadRequestError(
            f"element {index} of input '{spec.name}' is the byte {data[index]}; a BOOL is the byte 0 or 1."
        )
    return (values.byteswap() if _SWAPPED else values).reshape(shape)


def to_binary(values: Array) -> memoryview:
    """The bytes of a tensor: of its own memory where that is in order, which must not change any more."""
    if values.dtype.hasobject:
        elements = values.reshape(-1).tolist()
        return memoryview(b"".join(part for element in elements for part in (_length(element), element)))
    ordered = np.ascontiguousarray(values.byteswap() if _SWAPPED else values)
    return ordered.reshape(-1).view(np.uint8).data


def _length(element: bytes) -> bytes:
    return _LENGTH.pack(len(element))


def _elements(data: memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    count, size = math.prod(shape), len(data)
    # Asked before the array is made: a shape may say anything.
    if count * _LENGTH.size > size:
        raise _miscounted(size // _LENGTH.size, shape, spec, more="at most ")
    values, offset = np.empty(count, np.object_), 0
    for index in range(count):
        if offset + _LENGTH.size > size:
            raise _miscounted(index, shape, spec)
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if length > size - offset:
            raise BadRequestError(
                f"element {index} of input '{spec.name}' says that it has {length} bytes, and {size - offset} "
                "are left; send the length of each element as 32 bits, little-endian, before it."
            )
        values[index] = bytes(data[offset : offset + length])
        offset += length
    if offset < size:
        raise BadRequestError(
            f"{size - offset} bytes follow the {count} elements of input '{spec.name}' that its shape "
            f"{list(shape)} takes; send as many as the shape says."
        )
    return values.reshape(shape)


def _miscounted(seen: int, shape: tuple[int, ...], spec: TensorSpec, *, more: str = "") -> BadRequestError:
    return BadRequestError(
        f"input '{spec.name}' has {more}{seen} elements of binary data, its shape {list(shape)} takes "
        f"{math.prod(shape)}; send as many elements as the shape says."
    )
