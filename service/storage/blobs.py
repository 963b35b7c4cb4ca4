"""Blobs by content address: a name is a promise about the bytes.

A blob is hashed while it is written to a file of this machine, `incoming/`, flushed, and only then handed to the
store, whole and under its address. Whoever was told a digest finds exactly those bytes: they are hashed again
wherever they are read.
"""

import hashlib
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from engines.errors import InvalidArtifactError
from service.builds.crashpoints import reached
from service.storage.disk_space import check_room, translated
from service.storage.durable_files import make_durable_folder, modified

CHUNK_BYTES = 1 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoredBlob:
    """A blob as a store lists it."""

    digest: str
    size_bytes: int


class BlobStore(ABC):
    """Where blobs are kept. Any number of processes may use the same one."""

    def __init__(self, incoming: Path) -> None:
        """`incoming` is the folder of this machine in which blobs are written before the store gets them."""
        self.incoming = incoming

    @abstractmethod
    def adopt(self, file: Path, digest: str) -> None:
        """Makes a flushed file of ours the blob `digest`, durably; one that is there already is young again.

        Raises:
            StorageFullError: no room is left.
            StoreUnavailableError: the store does not answer.
        """

    @abstractmethod
    def size_bytes(self, digest: str) -> int:
        """How long the blob is.

        Raises:
            InvalidArtifactError: no such blob.
            StoreUnavailableError: the store does not answer.
        """

    @abstractmethod
    def has(self, digest: str) -> bool:
        """Whether the blob is there now.

        Raises:
            StoreUnavailableError: the store does not answer.
        """

    @abstractmethod
    def delete(self, digests: Collection[str]) -> None:
        """Removes those of the blobs that are there.

        Raises:
            StoreUnavailableError: the store does not answer.
        """

    @abstractmethod
    def blobs(self, *, older_than_s: float) -> Iterator[StoredBlob]:
        """Blobs that nobody has stored, or stored again, in the last `older_than_s` seconds.

        Raises:
            StoreUnavailableError: the store does not answer.
        """

    @abstractmethod
    def _chunks(self, digest: str) -> Iterator[bytes]:
        """The bytes that are kept under `digest`, whatever they are; raises as `size_bytes` does."""

    def digests(self, *, older_than_s: float) -> Iterator[str]:
        """As `blobs`, by name alone."""
        return (blob.digest for blob in self.blobs(older_than_s=older_than_s))

    def check_room(self, needed_bytes: int) -> None:
        """Refuses what this machine's disk has no room for, before any of it is written.

        Raises:
            StorageFullError: the disk has fewer bytes left.
        """
        check_room(self.incoming, needed_bytes)

    def writer(self) -> "BlobWriter":
        """A writer that hashes what it is given; nothing is stored until it commits.

        Raises:
            StorageFullError: the disk is full.
        """
        try:
            make_durable_folder(self.incoming)
            return BlobWriter(self.incoming / uuid.uuid4().hex, self)
        except OSError as error:
            raise translated(error, self.incoming) from error

    def put(self, path: Path) -> str:
        """Stores a copy of the file `path` and returns its digest.

        Raises:
            StorageFullError: no room is left.
            StoreUnavailableError: the store does not answer.
        """
        with self.writer() as writer, path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit()

    def read(self, digest: str) -> Iterator[bytes]:
        """The blob in pieces, the last of which comes only once all bytes were seen to be those of the digest.

        Raises:
            InvalidArtifactError: the blob is missing, or its bytes are others.
            StoreUnavailableError: the store does not answer.
        """
        hasher, held = hashlib.sha256(), b""
        for chunk in self._chunks(digest):
            hasher.update(chunk)
            if held:
                yield held
            held = chunk
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise InvalidArtifactError(
                f"the stored file {digest} has changed in the store: its bytes now hash to "
                f"sha256:{hasher.hexdigest()}; restore it from a backup, or build again."
            )
        if held:
            yield held

    def materialise(self, files: Mapping[str, str], folder: Path) -> None:
        """Copies the blobs `files` (relative name -> digest) into `folder`, checking every byte on the way.

        They are copies, so that whatever reads and writes in `folder` cannot reach the store.

        Raises:
            InvalidArtifactError: a blob is missing, or its bytes are not those of its digest.
            StorageFullError: the disk is full.
            StoreUnavailableError: the store does not answer.
        """
        for name, digest in files.items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    copy.writelines(self.read(digest))
            except OSError as error:
                raise translated(error, folder) from error
            except InvalidArtifactError as error:
                target.unlink()
                raise InvalidArtifactError(f"{name!r} cannot be read back: {error}") from error

    def stale(self, *, older_than_s: float) -> list[Path]:
        """What killed writers left behind on this machine: files without a write for so long."""
        horizon = time.time() - older_than_s
        return [path for path in self.incoming.glob("*") if modified(path) < horizon]


class BlobWriter:
    """Writes one blob; leave the `with` block without `commit` and nothing remains."""

    def __init__(self, temporary: Path, store: BlobStore) -> None:
        self._path = temporary
        self._store = store
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
            raise translated(error, self._path.parent) from error
        self._hasher.update(chunk)
        self.bytes_written += len(chunk)

    @property
    def digest(self) -> str:
        """That of what was written."""
        return f"sha256:{self._hasher.hexdigest()}"

    def seal(self) -> None:
        """Flushes what was written to the disk and closes the file; only `commit` or `discard` may follow. Idempotent.

        Raises:
            StorageFullError: the disk is full.
        """
        if self._file.closed:
            return
        try:
            self._file.flush()
            reached("blob.before_flush")
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise translated(error, self._path.parent) from error

    def commit(self) -> str:
        """Makes the blob durable under its digest, which is returned. May be called again where it failed.

        Raises:
            StorageFullError: no room is left.
            StoreUnavailableError: the store does not answer.
        """
        self.seal()
        self._store.adopt(self._path, self.digest)
        return self.digest

    def discard(self) -> None:
        """Gives up what was written. Idempotent; the blob stays after `commit`."""
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


def address(digest: str) -> str:
    """Where a store keeps the blob: a relative path with `/`.

    Raises:
        InvalidArtifactError: it is no digest.
    """
    if not DIGEST.fullmatch(digest):
        raise InvalidArtifactError(f"{digest!r} is no digest; expected sha256: and 64 hexadecimal digits.")
    name = digest.removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def missing(digest: str, where: object) -> InvalidArtifactError:
    """The error of a blob that is not there."""
    return InvalidArtifactError(
        f"the stored file {digest} is missing from {where}; restore a backup, or build again."
    )


def digest_of(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
