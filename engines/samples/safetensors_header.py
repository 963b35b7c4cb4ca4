"""The header of a .safetensors file that nobody vouches for.

Format (github.com/huggingface/safetensors): 8 bytes with the length of the header, little-endian; the header, a
JSON object of `{name: {"dtype", "shape", "data_offsets"}}`, padded with spaces; the data of all tensors, little-endian
in C order. Offsets count from the end of the header; tensors cover the data without holes or overlaps.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from engines.errors import InvalidSamplesError
from engines.model.naming import quote
from engines.samples.npy_header import MAX_RANK, NpyHeader

MAX_HEADER_BYTES = 1 << 20
"""The format allows 100 MB; a header of a thousand inputs has 100 kB."""
MAX_TENSORS = 1024
START_BYTES = 9
"""How much of a file tells whether it is one."""

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    # Two bytes without a type, as .npy files keep them.
    "BF16": np.dtype("V2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that a header declares."""

    name: str
    header: NpyHeader
    # Of its first byte, from the start of the file.
    offset: int


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these START_BYTES may be one: a short length, then a JSON object."""
    if len(start) < START_BYTES or start[8:9] != b"{":
        return False
    (length,) = _LENGTH.unpack_from(start)
    # A length beyond what is read is for `read_tensors` to refuse, unless it is no length at all.
    return bool(2 <= length < 1 << 32)


def read_tensors(file: IO[bytes], file_bytes: int, where: str) -> tuple[StoredTensor, ...]:
    """Parses the header of an open file of `file_bytes`; `where` names it in messages.

    Raises:
        InvalidSamplesError: it is damaged or hostile, or holds element types that octet does not read.
    """
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise _damaged(where, "it ends within its first 8 bytes")
    (length,) = _LENGTH.unpack(start)
    if length > MAX_HEADER_BYTES:
        raise InvalidSamplesError(
            f"{where} has a header of {length} bytes; octet reads at most {MAX_HEADER_BYTES}: save the inputs alone."
        )
    text = file.read(length)
    if len(text) < length:
        raise _damaged(where, f"its header of {length} bytes ends after {len(text)}")
    entries = _entries(text, where)
    data_bytes = file_bytes - _LENGTH.size - length
    tensors = sorted(
        (_tensor(name, entry, _LENGTH.size + length, where) for name, entry in entries.items()),
        key=lambda tensor: (tensor.offset, _size_bytes(tensor)),
    )
    end = _LENGTH.size + length
    for tensor in tensors:
        if tensor.offset != end:
            raise _damaged(
                where, f"array {quote(tensor.name)} overlaps another one or leaves a hole before it"
            )
        end += _size_bytes(tensor)
    if end != _LENGTH.size + length + data_bytes:
        raise InvalidSamplesError(
            f"{where} declares {end - _LENGTH.size - length} bytes of data, but holds {data_bytes}: the file is"
            " truncated or damaged; save and upload it again."
        )
    # In the header's own order, which is that of the caller's arrays.
    return tuple(sorted(tensors, key=lambda tensor: list(entries).index(tensor.name)))


def _entries(text: bytes, where: str) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _damaged(where, f"its header cannot be parsed: {reason}") from error
    if not isinstance(header, dict):
        raise _damaged(where, "its header is no JSON object")
    header.pop(_METADATA, None)
    if len(header) > MAX_TENSORS:
        raise InvalidSamplesError(
            f"{where} lists {len(header)} arrays; octet takes at most {MAX_TENSORS}: save one array per input, with"
            " all rows in it."
        )
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{quote(twice)} stands there twice")
    return fields


def _tensor(name: str, entry: object, data_start: int, where: str) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, f"array {quote(name)} is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise _damaged(where, f"array {quote(name)} has the impossible shape {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(where, f"array {quote(name)} has the impossible offsets {str(offsets)[:80]}")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise InvalidSamplesError(
            f"the array {quote(name)} in {where} has the element type {str(entry['dtype'])[:80]!r}; octet reads floats,"
            " integers and bool: convert it."
        )
    tensor = StoredTensor(
        name=name,
        header=NpyHeader(dtype=dtype, shape=tuple(shape), fortran_order=False),
        offset=data_start + offsets[0],
    )
    if offsets[1] - offsets[0] != _size_bytes(tensor):
        raise _damaged(
            where,
            f"array {quote(name)} of shape {shape} takes {_size_bytes(tensor)} bytes, but its offsets {offsets} hold"
            f" {offsets[1] - offsets[0]}",
        )
    return tensor


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _size_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.header.shape) * tensor.header.dtype.itemsize


def _damaged(where: str, reason: str) -> InvalidSamplesError:
    return InvalidSamplesError(
        f"{where} is damaged ({reason}): save it with safetensors.numpy.save_file and upload it again."
    )
