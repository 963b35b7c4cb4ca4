"""What every store keeps to, run against each of them."""

import datetime as dt
import hashlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from engines.errors import InvalidArtifactError
from service.storage.blobs import BlobStore, address
from service.storage.folder_store import FolderStore
from service.storage.object_store import ObjectStore
from tests.s3 import BUCKET, s3_environment, s3_server


class Keeping(ABC):
    """A store, and the hands of somebody who reaches behind it."""

    store: BlobStore

    @abstractmethod
    def overwrite(self, digest: str, data: bytes) -> None: ...

    @abstractmethod
    def age(self, digest: str, seconds: float) -> None: ...


class InFolder(Keeping):
    def __init__(self, root: Path) -> None:
        self.store = FolderStore(root)
        self._root = root

    def overwrite(self, digest: str, data: bytes) -> None:
        (self._root / address(digest)).write_bytes(data)

    def age(self, digest: str, seconds: float) -> None:
        age(self._root / address(digest), seconds)


class InS3(Keeping):
    def __init__(self, incoming: Path) -> None:
        self._prefix = uuid.uuid4().hex
        self.store: ObjectStore = ObjectStore(BUCKET, self._prefix, incoming=incoming)

    def overwrite(self, digest: str, data: bytes) -> None:
        obstore.put(self.store._s3, address(digest), data)

    def age(self, digest: str, seconds: float) -> None:
        from moto.s3.models import s3_backends  # noqa: PLC0415 # loads for seconds

        [backends] = [account["global"] for account in s3_backends.values() if "global" in account]
        key = backends.get_object(BUCKET, f"{self._prefix}/{address(digest)}")
        key.last_modified = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url, s3_environment(url):
        yield url


@pytest.fixture(params=["folder", "s3"])
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Keeping:
    if request.param == "folder":
        return InFolder(tmp_path / "store")
    request.getfixturevalue("s3")
    return InS3(tmp_path / "incoming")


@pytest.fixture
def store(keeping: Keeping) -> BlobStore:
    return keeping.store


def stored(store: BlobStore, data: bytes) -> str:
    with store.writer() as writer:
        writer.write(data)
        return writer.commit()


def content(store: BlobStore, digest: str) -> bytes:
    return b"".join(store.read(digest))


def leftovers(store: BlobStore) -> list[Path]:
    return list(store.incoming.glob("*"))


def test_the_digest_is_the_sha256_of_the_bytes_however_they_are_cut(store: BlobStore) -> None:
    with store.writer() as writer:
        for chunk in (b"ab", b"", b"c"):
            writer.write(chunk)
        digest = writer.commit()
    assert digest == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert writer.bytes_written == 3
    assert (content(store, digest), store.size_bytes(digest)) == (b"abc", 3)
    assert not leftovers(store)


@pytest.mark.parametrize("length", [0, 1, (20 << 20) + 1])
def test_any_length_comes_back_whole(store: BlobStore, tmp_path: Path, length: int) -> None:
    data = os.urandom(length)
    (tmp_path / "file").write_bytes(data)
    digest = store.put(tmp_path / "file")
    assert digest == stored(store, data)
    assert content(store, digest) == data
    assert (tmp_path / "file").exists()
    assert not leftovers(store)


def test_nothing_is_stored_without_commit(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(b"abc")
    assert not leftovers(store)
    assert not list(store.digests(older_than_s=-60))


def test_materialised_files_are_copies(store: BlobStore, tmp_path: Path) -> None:
    digest = stored(store, b"abc")
    store.materialise({"folder/name": digest, "other": digest}, tmp_path / "work")
    copy = tmp_path / "work" / "folder" / "name"
    assert copy.read_bytes() == b"abc"
    copy.write_bytes(b"changed")
    assert content(store, digest) == b"abc"


@pytest.mark.parametrize("other", [b"abd", b"ab", b"abcd", b""])
def test_bytes_that_changed_are_noticed_before_the_last_are_given(
    keeping: Keeping, tmp_path: Path, other: bytes
) -> None:
    digest = stored(keeping.store, b"abc")
    keeping.overwrite(digest, other)
    given: list[bytes] = []
    with pytest.raises(InvalidArtifactError, match=rf"{digest} has changed .*restore"):
        given.extend(keeping.store.read(digest))
    assert not given
    with pytest.raises(InvalidArtifactError, match=rf"'model\.onnx' .*{digest} has changed .*restore"):
        keeping.store.materialise({"model.onnx": digest}, tmp_path / "work")
    assert not (tmp_path / "work" / "model.onnx").exists()


def test_a_missing_blob_is_named(store: BlobStore) -> None:
    digest = stored(store, b"abc")
    assert store.has(digest)
    store.delete([digest])
    store.delete([digest])
    store.delete([])
    assert not store.has(digest)
    for ask in (store.size_bytes, lambda missing: content(store, missing)):
        with pytest.raises(InvalidArtifactError, match=f"{digest} is missing"):
            ask(digest)


@pytest.mark.parametrize(
    "digest", ["", "abc", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "a" * 64]
)
def test_what_is_no_digest_is_no_address(store: BlobStore, digest: str) -> None:
    for ask in (store.size_bytes, lambda wrong: store.delete([wrong]), lambda wrong: content(store, wrong)):
        with pytest.raises(InvalidArtifactError, match="no digest"):
            ask(digest)


def test_only_blobs_older_than_asked_are_listed(keeping: Keeping) -> None:
    old, young = stored(keeping.store, b"old"), stored(keeping.store, b"young")
    keeping.age(old, 100)
    assert list(keeping.store.digests(older_than_s=50)) == [old]
    assert set(keeping.store.digests(older_than_s=-60)) == {old, young}


def test_storing_a_blob_again_makes_it_young(keeping: Keeping) -> None:
    digest = stored(keeping.store, b"abc")
    keeping.age(digest, 100)
    stored(keeping.store, b"abc")
    assert not list(keeping.store.digests(older_than_s=50))


def test_leftovers_are_told_from_files_that_are_being_written(store: BlobStore) -> None:
    digest = stored(store, b"abc")
    killed = store.writer()
    [killed_file] = leftovers(store)
    age(killed_file, 100)
    writing = store.writer()
    assert len(leftovers(store)) == 2
    assert [store.incoming / path.name for path in store.stale(older_than_s=50)] == [killed_file]
    assert content(store, digest) == b"abc"
    killed.discard()
    writing.discard()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
