import errno
import os
import time
from pathlib import Path

import pytest

from service.errors import StorageFullError
from service.storage.folder_store import FolderStore
from tests.disks import filled


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def stored(store: FolderStore, data: bytes) -> str:
    with store.writer() as writer:
        writer.write(data)
        return writer.commit()


def leftovers(store: FolderStore) -> list[Path]:
    return list((store.root / "incoming").glob("*"))


def test_a_blob_is_flushed_before_it_gets_its_name(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_new_folders_are_flushed_in_their_parents(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_full_disk_is_one_sentence(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.writer() as writer:
        writer.write(b"abc")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match=r"no room is left on the disk .*; free some space"):
            writer.commit()
    assert not leftovers(store)


def test_a_disk_without_room_for_another_file_is_one_sentence_too(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("service.storage.blobs.make_durable_folder", full)
    with pytest.raises(StorageFullError, match=r"no room is left on the disk"):
        store.writer()


def test_on_a_full_disk_nothing_begins_and_nothing_is_left(small: Path) -> None:
    store = FolderStore(small / "store")
    digest = stored(store, b"abc")
    with filled(small):
        with store.writer() as writer, pytest.raises(StorageFullError, match=r"\(0 bytes left\); free some"):
            writer.write(bytes(1 << 20))
        with pytest.raises(StorageFullError):
            store.materialise({"copy": digest}, small / "work")
        with pytest.raises(StorageFullError, match="1 bytes are needed"):
            store.check_room(1)
        assert b"".join(store.read(digest)) == b"abc"
    assert not leftovers(store)
    assert stored(store, b"abcd")


def test_a_full_disk_is_noticed_while_writing(store: FolderStore) -> None:
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
