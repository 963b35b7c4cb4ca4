import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from engines.errors import InvalidArtifactError
from service.errors import StorageFullError
from service.storage import BlobStore


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def stored(store: BlobStore, data: bytes) -> str:
    with store.writer() as writer:
        writer.write(data)
        return writer.commit()


def leftovers(store: BlobStore) -> list[Path]:
    return list((store.root / "incoming").glob("*"))


def test_the_digest_is_the_sha256_of_the_bytes_however_they_are_cut(store: BlobStore) -> None:
    with store.writer() as writer:
        for chunk in (b"ab", b"", b"c"):
            writer.write(chunk)
        digest = writer.commit()
    assert digest == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert writer.bytes_written == 3
    assert store.path(digest).read_bytes() == b"abc"
    assert not leftovers(store)


def test_put_stores_a_file_under_the_same_address(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 700_000)
    digest = store.put(tmp_path / "file")
    assert digest == stored(store, b"abc" * 700_000)
    assert (tmp_path / "file").exists()


def test_nothing_is_stored_without_commit(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(b"abc")
    assert not leftovers(store)
    assert not list(store.digests(older_than_s=-60))


def test_a_blob_is_flushed_before_it_gets_its_name(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, rename = os.fsync, Path.replace

    def noting_flush(handle: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        flush(handle)

    def noting_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    stored(store, b"folders are there now")
    monkeypatch.setattr(os, "fsync", noting_flush)
    monkeypatch.setattr(Path, "replace", noting_rename)
    (store.root / "sha256" / "ba").mkdir(exist_ok=True)
    stored(store, b"abc")
    assert events == ["file", "rename", "folder"]


def test_new_folders_are_flushed_in_their_parents(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def noting_flush(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", noting_flush)
    digest = stored(store, b"abc")
    blob = store.path(digest)
    assert {str(blob.parent), str(blob.parent.parent), str(store.root), str(store.root.parent)} <= set(
        flushed
    )


def test_materialised_files_are_copies(store: BlobStore, tmp_path: Path) -> None:
    digest = stored(store, b"abc")
    store.materialise({"folder/name": digest, "other": digest}, tmp_path / "work")
    copy = tmp_path / "work" / "folder" / "name"
    assert copy.read_bytes() == b"abc"
    copy.write_bytes(b"changed")
    assert store.path(digest).read_bytes() == b"abc"


def test_bytes_that_changed_on_the_disk_are_noticed(store: BlobStore, tmp_path: Path) -> None:
    digest = stored(store, b"abc")
    store.path(digest).write_bytes(b"abd")
    with pytest.raises(InvalidArtifactError, match=rf"{digest} \(model\.onnx\) has changed .*restore"):
        store.materialise({"model.onnx": digest}, tmp_path / "work")
    assert not (tmp_path / "work" / "model.onnx").exists()


def test_a_missing_blob_is_named(store: BlobStore) -> None:
    digest = stored(store, b"abc")
    store.delete(digest)
    store.delete(digest)
    with pytest.raises(InvalidArtifactError, match=f"{digest} is missing"):
        store.path(digest)


@pytest.mark.parametrize(
    "digest", ["", "abc", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "a" * 64]
)
def test_what_is_no_digest_is_no_path(store: BlobStore, digest: str) -> None:
    with pytest.raises(InvalidArtifactError, match="no digest"):
        store.path(digest)


def test_only_blobs_older_than_asked_are_listed(store: BlobStore) -> None:
    old, young = stored(store, b"old"), stored(store, b"young")
    age(store.path(old), 100)
    assert list(store.digests(older_than_s=50)) == [old]
    assert set(store.digests(older_than_s=-60)) == {old, young}


def test_storing_a_blob_again_makes_it_young(store: BlobStore) -> None:
    digest = stored(store, b"abc")
    age(store.path(digest), 100)
    stored(store, b"abc")
    assert not list(store.digests(older_than_s=50))


def test_only_stale_leftovers_are_removed(store: BlobStore) -> None:
    digest = stored(store, b"abc")
    killed, writing = store.writer(), store.writer()
    age(leftovers(store)[0], 100)
    assert store.remove_stale(older_than_s=50) == 1
    assert len(leftovers(store)) == 1
    assert store.path(digest).exists()
    killed.discard()
    writing.discard()


def test_a_full_disk_is_one_sentence(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.writer() as writer:
        writer.write(b"abc")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match="is full; free some space"):
            writer.commit()
    assert not leftovers(store)


def test_a_full_disk_is_noticed_while_writing(store: BlobStore) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this machine")
    with store.writer() as writer:
        [temporary] = leftovers(store)
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        writer._file.close()
        writer._file = temporary.open("wb")
        with pytest.raises(StorageFullError):
            writer.write(b"x" * (1 << 20))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
