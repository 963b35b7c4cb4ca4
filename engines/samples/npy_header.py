"""The header of a .npy array that nobody vouches for (numpy.lib.format, NEP 1).

numpy's own reader allocates as many bytes as the header says it has before it looks at them; this one reads a
few kilobytes at most and takes plain numbers only.
"""

import ast
import re
import struct
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from engines.errors import InvalidSamplesError

NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
MAX_RANK = 32

_DESCRIPTION = re.compile(r"[<>|=]?([a-zA-Z?])(\d{0,9})")


@dataclass(frozen=True, kw_only=True)
class NpyHeader:
    """What a .npy declares about its data."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool


def read_header(file: IO[bytes], where: str) -> NpyHeader:
    """Parses an .npy header and leaves the file at the first byte of the data; `where` names it in messages.

    Raises:
        InvalidSamplesError: it is no .npy, damaged, or of an element type that octet does not read.
    """
    start = file.read(8)
    if not start.startswith(NPY_MAGIC) or len(start) < 8:
        raise InvalidSamplesError(
            f"{where} is no .npy array (it starts with {start[:4]!r}): save it with np.savez."
        )
    length_format = "<H" if start[6] == 1 else "<I"
    length_bytes = file.read(struct.calcsize(length_format))
    if start[6] not in (1, 2, 3) or len(length_bytes) < struct.calcsize(length_format):
        raise InvalidSamplesError(f"{where} has a damaged .npy header (version {start[6]}): save it again.")
    (size_bytes,) = struct.unpack(length_format, length_bytes)
    if size_bytes > MAX_HEADER_BYTES:
        raise InvalidSamplesError(
            f"{where} has an .npy header of {size_bytes} bytes; octet reads at most {MAX_HEADER_BYTES}: save"
            " plain arrays of numbers."
        )
    text = file.read(size_bytes)
    try:
        fields = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise InvalidSamplesError(
            f"{where} has an .npy header that cannot be parsed: save it again."
        ) from error
    if len(text) < size_bytes or not isinstance(fields, dict):
        raise InvalidSamplesError(f"{where} has a damaged .npy header: save it again.")
    return _checked_header(fields, where)


def _checked_header(fields: dict[Any, Any], where: str) -> NpyHeader:
    if set(fields) != {"descr", "fortran_order", "shape"}:
        raise InvalidSamplesError(
            f"{where} has an .npy header without descr, fortran_order or shape: save it again."
        )
    shape = fields["shape"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_RANK
        or any(type(size) is not int or size < 0 for size in shape)
        or type(fields["fortran_order"]) is not bool
    ):
        raise InvalidSamplesError(f"{where} declares the impossible shape {str(shape)[:80]}: save it again.")
    return NpyHeader(
        dtype=_checked_dtype(fields["descr"], where), shape=shape, fortran_order=fields["fortran_order"]
    )


def _checked_dtype(description: object, where: str) -> np.dtype[np.generic]:
    match = _DESCRIPTION.fullmatch(description) if isinstance(description, str) else None
    if match is None:
        raise InvalidSamplesError(
            f"{where} has the element type {str(description)[:80]!r}; octet reads plain numbers only: save"
            " one array per input."
        )
    if match[1] == "O":
        raise InvalidSamplesError(
            f"{where} holds Python objects (a pickle), which octet never reads: save arrays of numbers, for"
            " example np.stack(rows).astype(np.float32)."
        )
    try:
        dtype = np.dtype(match[0])
    except (TypeError, ValueError) as error:
        raise InvalidSamplesError(
            f"{where} has the unknown element type {match[0]!r}: save it again."
        ) from error
    # bfloat16 is saved as two bytes without a type.
    if dtype.kind not in "biuf" and dtype != np.dtype("V2"):
        raise InvalidSamplesError(
            f"{where} has the element type {dtype.str!r}; octet reads floats, integers and bool: convert it."
        )
    return dtype
