"""Blobs by content address in a local folder: a name is a promise about the bytes.

A blob is written to `incoming/`, flushed to the disk, and only then renamed to its address; the folders are
flushed too. Whoever was told a digest finds exactly those bytes, also after the power went.
"""

import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from engines.errors import InvalidArtifactError
from service.crashpoints import reached
from service.errors import StorageFullError

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BlobStore:
    """Blobs under `root`. Any number of processes may use the same folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._blobs = root / "sha256"

    def writer(self) -> "BlobWriter":
        """A writer that hashes what it is given; nothing is stored until it commits."""
        _make_durable_folder(self._incoming)
        return BlobWriter(self._incoming / uuid.uuid4().hex, self._blobs)

    def put(self, path: Path) -> str:
        """Stores a copy of the file `path` and returns its digest.

        Raises:
            StorageFullError: the disk is full.
        """
        with self.writer() as writer, path.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def path(self, digest: str) -> Path:
        """Where the blob lies. It is shared and must not be written to.

        Raises:
            InvalidArtifactError: no such blob.
        """
        path = self._address(digest)
        if not path.is_file():
            raise InvalidArtifactError(
                f"the stored file {digest} is missing from {self.root}; restore a backup, or build again."
            )
        return path

    def materialise(self, files: Mapping[str, str], folder: Path) -> None:
        """Copies the blobs `files` (relative name -> digest) into `folder`, checking every byte on the way.

        They are copies, so that whatever reads and writes in `folder` cannot reach the store.

        Raises:
            InvalidArtifactError: a blob is missing, or its bytes are not those of its digest.
            StorageFullError: the disk is full.
        """
        for name, digest in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            hasher = hashlib.sha256()
            try:
                with self.path(digest).open("rb") as source, target.open("wb") as copy:
                    while chunk := source.read(_CHUNK_BYTES):
                        hasher.update(chunk)
                        copy.write(chunk)
            except OSError as error:
                raise _translated(error, folder) from error
            if f"sha256:{hasher.hexdigest()}" != digest:
                target.unlink()
                raise InvalidArtifactError(
                    f"the stored file {digest} ({name}) has changed on the disk: its bytes now hash to "
                    f"sha256:{hasher.hexdigest()}; restore it from a backup, or build again."
                )

    def delete(self, digest: str) -> None:
        """Removes the blob if it is there."""
        self._address(digest).unlink(missing_ok=True)

    def digests(self, *, older_than_s: float) -> Iterator[str]:
        """Blobs that nobody has stored, or stored again, in the last `older_than_s` seconds."""
        horizon = time.time() - older_than_s
        for path in self._blobs.glob("??/*"):
            if _DIGEST.fullmatch(f"sha256:{path.name}") and _modified(path) < horizon:
                yield f"sha256:{path.name}"

    def remove_stale(self, *, older_than_s: float) -> int:
        """Removes what killed writers left behind: files without a write for so long. Returns how many."""
        horizon = time.time() - older_than_s
        stale = [path for path in self._incoming.glob("*") if _modified(path) < horizon]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def _address(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidArtifactError(
                f"{digest!r} is no digest; expected sha256: and 64 hexadecimal digits."
            )
        return _address(self._blobs, digest)


class BlobWriter:
    """Writes one blob; leave the `with` block without `commit` and nothing remains."""

    def __init__(self, temporary: Path, blobs: Path) -> None:
        self._path = temporary
        self._blobs = blobs
        self._hasher = hashlib.sha256()
        self._file = temporary.open("xb")
        self.bytes_written = 0

    def write(self, chunk: bytes) -> None:
        """Adds bytes.

        Raises:
            StorageFullError: the disk is full.
        """
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _translated(error, self._blobs) from error
        self._hasher.update(chunk)
        self.bytes_written += len(chunk)

    def seal(self) -> None:
        """Flushes what was written to the disk and closes the file; only `commit` or `discard` may follow.

        Raises:
            StorageFullError: the disk is full.
        """
        try:
            self._file.flush()
            reached("blob.before_flush")
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise _translated(error, self._blobs) from error

    def commit(self) -> str:
        """Makes the blob durable under its digest, which is returned.

        Raises:
            StorageFullError: the disk is full.
        """
        if not self._file.closed:
            self.seal()
        digest = f"sha256:{self._hasher.hexdigest()}"
        try:
            _adopt(self._path, _address(self._blobs, digest))
        except OSError as error:
            raise _translated(error, self._blobs) from error
        return digest

    def discard(self) -> None:
        """Gives up what was written. Idempotent; does nothing after `commit`."""
        try:
            self._file.close()
        except OSError:
            # A full disk fails the flush of bytes that are thrown away anyway.
            pass
        finally:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def _address(blobs: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return blobs / name[:2] / name


def _adopt(temporary: Path, address: Path) -> None:
    """Moves a flushed file to its address; one that is there already is replaced by itself, young again."""
    _make_durable_folder(address.parent)
    reached("blob.before_rename")
    temporary.replace(address)
    _flush_folder(address.parent)
    reached("blob.after_rename")


def _make_durable_folder(folder: Path) -> None:
    """Makes the folder and the missing ones above it, each entry flushed in its parent."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        # Somebody else has just removed it; infinitely young is left alone.
        return float("inf")


def _translated(error: OSError, folder: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(
            f"the disk that holds {folder} is full; free some space and send the request again."
        )
    return error
