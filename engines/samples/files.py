"""Arrays inside untrusted .npz, .npy and .safetensors files, read in blocks, believed only as far as was checked.

A header is parsed before anything is allocated, pickles are never read, and what a zip declares is compared
with what comes out of it. Formats: numpy.lib.format (NEP 1) and PKWARE's APPNOTE.TXT.
"""

import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidSamplesError
from engines.model.naming import quote
from engines.samples.npy_header import NPY_MAGIC, NpyHeader, read_header
from engines.samples.safetensors_header import START_BYTES, looks_like_safetensors, read_tensors

BLOCK_BYTES = 4 * 2**20
"""How much of a file is in memory at a time."""
MAX_RATIO = 200
"""How many times larger than the file an .npz may unpack, once past RATIO_FREE_BYTES."""
RATIO_FREE_BYTES = 32 * 2**20
MAX_MEMBERS = 1024

_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
_MAX_DIRECTORY_BYTES = 2**20
_ENCRYPTED_FLAG = 1


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array in a file: its header is checked, its data is not read yet."""

    # Name of the .npz member without its ending, or of the tensor; empty for a .npy file.
    name: str
    header: NpyHeader
    # What messages call it.
    where: str
    # Opens the file at the first byte of the data.
    open_data: Callable[[], IO[bytes]]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """As stored; a byte order other than this machine's is swapped while reading."""
        return self.header.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As declared; `blocks` refuses data of another size."""
        return self.header.shape

    @property
    def stored_bytes(self) -> int:
        """Size of the data, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, scratch: Path) -> Iterator[NDArray[Any]]:
        """The elements in C order and this machine's byte order, as flat arrays of about BLOCK_BYTES.

        An array in Fortran order is unpacked into a temporary file in the folder `scratch` first, because its
        rows lie scattered over the whole data.

        Raises:
            InvalidSamplesError: the data ends early or is damaged.
        """
        native = self.dtype.newbyteorder("=")
        blocks = self._fortran_blocks(scratch) if self.header.fortran_order else self._stored_blocks()
        for block in blocks:
            # A byte that is neither 0 nor 1 is no bool that numpy could work with.
            yield block.view(np.uint8) != 0 if native == np.bool_ else block.astype(native, copy=False)

    def _stored_blocks(self) -> Iterator[NDArray[Any]]:
        block_bytes = max(1, BLOCK_BYTES // self.dtype.itemsize) * self.dtype.itemsize
        left = self.stored_bytes
        with self.open_data() as file:
            while left:
                wanted = min(block_bytes, left)
                content = self._read(file, wanted)
                left -= len(content)
                if len(content) < wanted:
                    raise InvalidSamplesError(
                        f"{self.where} ends {left} bytes early: the file is truncated; save and upload it"
                        " again."
                    )
                yield np.frombuffer(content, self.dtype)

    def _fortran_blocks(self, scratch: Path) -> Iterator[NDArray[Any]]:
        with tempfile.TemporaryFile(dir=scratch) as unpacked:
            for block in self._stored_blocks():
                unpacked.write(block.tobytes())
            unpacked.flush()
            array = np.memmap(unpacked, self.dtype, "r", shape=self.shape, order="F")
            step = max(1, BLOCK_BYTES * self.shape[0] // self.stored_bytes)
            for start in range(0, self.shape[0], step):
                yield np.ascontiguousarray(array[start : start + step]).reshape(-1)

    def _read(self, file: IO[bytes], size_bytes: int) -> bytes:
        try:
            return file.read(size_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise _damaged(self.where, error) from error


@contextmanager
def open_arrays(path: Path) -> Iterator[tuple[StoredArray, ...]]:
    """The arrays of an .npz, .npy or .safetensors file, told apart by content; their data can be read while inside.

    Raises:
        InvalidSamplesError: another format, a pickle, a damaged or encrypted archive, or one that unpacks to
            far more than it is.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError as error:
        raise InvalidSamplesError(
            f"the sample file {quote(path.name)} cannot be read ({error.strerror}): check the path."
        ) from error
    if start.startswith(NPY_MAGIC):
        yield (_npy_array(path),)
    elif start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with _open_zip(path) as archive:
            yield tuple(_member_array(archive, path, info) for info in archive.infolist())
    elif looks_like_safetensors(start):
        yield _tensors(path)
    else:
        raise InvalidSamplesError(_unknown_format(path.name, start))


def _unknown_format(name: str, start: bytes) -> str:
    if not start:
        return f"the sample file {quote(name)} is empty (0 bytes): save it with np.savez and upload it whole."
    if start.startswith(b"\x80"):
        return f"the sample file {quote(name)} is a pickle, which octet never reads: save it with np.savez."
    return (
        f"the sample file {quote(name)} is neither .npz, .npy nor .safetensors (it starts with {start[:4]!r}): save"
        " it with np.savez."
    )


def _npy_array(path: Path) -> StoredArray:
    where = f"the sample file {quote(path.name)}"
    with path.open("rb") as file:
        header = read_header(file, where)
        offset = file.tell()
    array = StoredArray(name="", where=where, open_data=_opener(path, offset), header=header)
    _check_size(array, path.stat().st_size - offset)
    return array


def _tensors(path: Path) -> tuple[StoredArray, ...]:
    where = f"the sample file {quote(path.name)}"
    with path.open("rb") as file:
        tensors = read_tensors(file, path.stat().st_size, where)

    return tuple(
        StoredArray(
            name=tensor.name,
            where=f"the array {quote(tensor.name)} in {where}",
            open_data=_opener(path, tensor.offset),
            header=tensor.header,
        )
        for tensor in tensors
    )


def _opener(path: Path, offset: int) -> Callable[[], IO[bytes]]:
    def open_data() -> IO[bytes]:
        file = path.open("rb")
        file.seek(offset)
        return file

    return open_data


# What zipfile and zlib raise on damaged archives, those of unknown compression (NotImplementedError) and those with a
# password (RuntimeError) included.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError),
    # A member's own header may call it UTF-8 when it is not.
    UnicodeDecodeError,
)


def _member_array(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> StoredArray:
    where = f"the array {quote(info.filename)} in the sample file {quote(path.name)}"
    if not info.filename.endswith(".npy"):
        raise InvalidSamplesError(
            f"{where} is no .npy member: save the arrays with np.savez, each under the name of an input."
        )
    if info.flag_bits & _ENCRYPTED_FLAG:
        raise InvalidSamplesError(f"{where} is encrypted: save the arrays with np.savez, without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidSamplesError(
            f"{where} is compressed by method {info.compress_type}: save it with np.savez or"
            " np.savez_compressed."
        )
    try:
        with archive.open(info) as file:
            header = read_header(file, where)
            offset = file.tell()
    except _ZIP_ERRORS as error:
        raise _damaged(where, error) from error

    def open_data() -> IO[bytes]:
        file = archive.open(info)
        file.read(offset)
        return file

    array = StoredArray(
        name=info.filename.removesuffix(".npy"), where=where, open_data=open_data, header=header
    )
    _check_size(array, info.file_size - offset)
    return array


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    where = f"the sample file {quote(path.name)}"
    _check_directory(path, where)
    try:
        archive = zipfile.ZipFile(path)
    # zipfile checks little: what it trips over in a bad directory, a seek before the start for one, comes as it is.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise _damaged(where, error) from error
    with archive:
        names = [info.filename for info in archive.infolist()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidSamplesError(
                f"{where} holds the array {quote(twice)} twice: save it again with np.savez."
            )
        unpacked_bytes = sum(info.file_size for info in archive.infolist())
        packed_bytes = max(1, path.stat().st_size)
        if unpacked_bytes > max(RATIO_FREE_BYTES, MAX_RATIO * packed_bytes):
            raise InvalidSamplesError(
                f"{where} has {packed_bytes} bytes but would unpack to {unpacked_bytes}, more than"
                f" {MAX_RATIO} times as much: save it uncompressed with np.savez."
            )
        yield archive


def _check_directory(path: Path, where: str) -> None:
    """Bounds the zip's directory before zipfile reads all of it into memory."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size_bytes - 2**16 - _END_OF_DIRECTORY.size))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_OF_DIRECTORY.size:
        raise InvalidSamplesError(
            f"{where} has no zip directory at its end: the file is truncated; save and upload it again."
        )
    _, disk, first_disk, _, members, directory_bytes, _, _ = _END_OF_DIRECTORY.unpack_from(tail, at)
    # A file past 4 GiB keeps the real numbers in a zip64 record; it has the same bounds.
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF):
        raise InvalidSamplesError(
            f"{where} is one part of a split zip archive: save it as one file with np.savez."
        )
    if tail[:at][-20:-16] == b"PK\x06\x07" and tail[:at][-76:-72] == b"PK\x06\x06":
        members, directory_bytes = struct.unpack_from("<QQ", tail, at - 76 + 32)
    if members > MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise InvalidSamplesError(
            f"{where} lists {members} members; octet takes at most {MAX_MEMBERS}: save one array per input,"
            " with all rows in it."
        )


def _check_size(array: StoredArray, found_bytes: int) -> None:
    if found_bytes != array.stored_bytes:
        raise InvalidSamplesError(
            f"{array.where} declares the shape {list(array.shape)}, which is {array.stored_bytes} bytes, but"
            f" holds {found_bytes}: the file is truncated or damaged; save and upload it again."
        )


def _damaged(where: str, error: Exception) -> InvalidSamplesError:
    reason = " ".join(str(error).split())[:200]
    return InvalidSamplesError(f"{where} is damaged ({reason}): save it with np.savez and upload it again.")
