"""Blobs in a folder of this machine, or of a network disk that others have mounted too.

Our own code rather than obstore's, whose local files are not flushed to the disk before they get their names.
"""

import contextlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from service.builds.crashpoints import reached
from service.storage.blobs import CHUNK_BYTES, DIGEST, BlobStore, StoredBlob, address, missing
from service.storage.disk_space import translated
from service.storage.durable_files import flush_folder, make_durable_folder


class FolderStore(BlobStore):
    """Blobs under `root`, flushed to the disk, and so are the folders that name them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "incoming")
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the blob lies. It is shared and must not be written to.

        Raises:
            InvalidArtifactError: no such blob.
        """
        path = self.root / address(digest)
        if not path.is_file():
            raise missing(digest, self.root)
        return path

    def adopt(self, file: Path, digest: str) -> None:
        place = self.root / address(digest)
        try:
            make_durable_folder(place.parent)
            reached("blob.before_rename")
            # A blob that is there already is replaced by itself, young again.
            file.replace(place)
            flush_folder(place.parent)
        except OSError as error:
            raise translated(error, self.root) from error
        reached("blob.after_rename")

    def size_bytes(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def has(self, digest: str) -> bool:
        return (self.root / address(digest)).is_file()

    def delete(self, digests: Collection[str]) -> None:
        for digest in digests:
            (self.root / address(digest)).unlink(missing_ok=True)

    def blobs(self, *, older_than_s: float) -> Iterator[StoredBlob]:
        horizon = time.time() - older_than_s
        for path in (self.root / "sha256").glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if DIGEST.fullmatch(digest := f"sha256:{path.name}") and stat.st_mtime < horizon:
                    yield StoredBlob(digest=digest, size_bytes=stat.st_size)

    def _chunks(self, digest: str) -> Iterator[bytes]:
        with self.path(digest).open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
