"""Blobs in S3 or what speaks its protocol, through obstore.

Credentials, region and endpoint come from the environment as every S3 client reads it: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, or the role of the machine. Large files go up in parts, which
become an object only when the last has arrived.
"""

import contextlib
import functools
import os
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path

import obstore
from obstore import exceptions as s3_errors
from obstore.store import S3Store

from engines.errors import InvalidArtifactError
from service.builds.crashpoints import reached
from service.errors import ServiceError, StartError, StorageFullError, StoreUnavailableError
from service.storage.blobs import BlobStore, StoredBlob, address, missing

_BLOCK_BYTES = 8 << 20
"""Read in one request: few enough bytes to arrive within its timeout on a slow network."""
_RETRY_S = 15.0
"""A store that is away for so long is said to be away; obstore waits and tries again until then."""
_FULL = ("507 ", "StorageFull", "QuotaExceeded")
"""What the answers of full stores say; S3 itself has no limit."""
_DENIED = ("401 Unauthorized", "403 Forbidden")
_NO_SUCH_RANGE = "416 Range Not Satisfiable"
"""What S3 says of the first bytes of an empty object."""
_REMEMBERED_SIZES = 65_536


class ObjectStore(BlobStore):
    """Blobs in a bucket, under a prefix."""

    def __init__(self, bucket: str, prefix: str, *, incoming: Path) -> None:
        super().__init__(incoming)
        self._name = f"s3://{bucket}/{prefix}".rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
        self._s3 = S3Store(
            bucket,
            prefix=prefix or None,
            # An endpoint without TLS is meant where somebody wrote it down.
            client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": "5s"},
            retry_config={"max_retries": 100, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )
        # A blob never changes, so neither does its size.
        self._size_bytes = functools.lru_cache(_REMEMBERED_SIZES)(self._ask_size_bytes)

    def check(self) -> None:
        """Finds out early, and in words, whether the bucket may be used; one that is away for now is no error.

        Raises:
            StartError: there is no such bucket, or the credentials do not open it.
        """
        try:
            next(iter(obstore.list(self._s3, "sha256", chunk_size=1)), None)
        except s3_errors.BaseError as error:
            if "NoSuchBucket" in str(error):
                raise StartError(
                    f"there is no bucket at {self._name}; create it, or change OCTET_STORE_URL."
                ) from error
            if any(status in str(error) for status in _DENIED):
                raise StartError(
                    f"the store {self._name} does not let octet in ({_first_line(error)}); set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY to a key that may list, read, write and delete there."
                ) from error

    def adopt(self, file: Path, digest: str) -> None:
        reached("blob.before_put")
        with self._translated():
            obstore.put(self._s3, address(digest), file)
        reached("blob.after_put")
        file.unlink()

    def size_bytes(self, digest: str) -> int:
        return self._size_bytes(digest)

    def has(self, digest: str) -> bool:
        try:
            self._ask_size_bytes(digest)
        except InvalidArtifactError:
            return False
        return True

    def delete(self, digests: Collection[str]) -> None:
        with self._translated():
            # S3 takes as many as a thousand in one request, and does not mind those that are not there.
            obstore.delete(self._s3, [address(digest) for digest in digests])

    def blobs(self, *, older_than_s: float) -> Iterator[StoredBlob]:
        horizon = time.time() - older_than_s
        with self._translated():
            for found in obstore.list(self._s3, "sha256"):
                for blob in found:
                    if blob["last_modified"].timestamp() < horizon:
                        digest = f"sha256:{blob['path'].rpartition('/')[2]}"
                        yield StoredBlob(digest=digest, size_bytes=blob["size"])

    def _chunks(self, digest: str) -> Iterator[bytes]:
        place = address(digest)
        first, size_bytes = self._first_block(digest)
        yield first
        for start in range(len(first), size_bytes, _BLOCK_BYTES):
            with self._translated(), self._missing(digest):
                block = obstore.get_range(
                    self._s3, place, start=start, end=min(start + _BLOCK_BYTES, size_bytes)
                ).to_bytes()
            yield block

    def _first_block(self, digest: str) -> tuple[bytes, int]:
        """The first bytes of a blob, and how many it has: most have no more, and need no second request."""
        with self._translated(), self._missing(digest):
            try:
                found = obstore.get(self._s3, address(digest), options={"range": (0, _BLOCK_BYTES)})
                return found.bytes().to_bytes(), int(found.meta["size"])
            except s3_errors.BaseError as error:
                if _NO_SUCH_RANGE in str(error):
                    return b"", 0
                raise

    def _ask_size_bytes(self, digest: str) -> int:
        with self._translated(), self._missing(digest):
            return int(obstore.head(self._s3, address(digest))["size"])

    @contextlib.contextmanager
    def _missing(self, digest: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise missing(digest, self._name) from error

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        # A bucket that is not found and keys that are refused are as good as away: somebody may be at them.
        try:
            yield
        except (s3_errors.BaseError, FileNotFoundError) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> ServiceError:
        said = _first_line(error)
        if any(word in str(error) for word in _FULL):
            return StorageFullError(
                f"the store {self._name} is full ({said}); free some space there and try again."
            )
        return StoreUnavailableError(f"the store {self._name} does not answer ({said}); try again later.")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300].rstrip(" .")
