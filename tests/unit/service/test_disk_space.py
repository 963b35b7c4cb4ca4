import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import StorageFullError
from service.storage.disk_space import check_room, free_bytes, full, is_full, translated


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=42))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            errno.ENOSPC,
            r"no room is left on the disk that holds /data \(42 bytes left\); free some space there",
        ),
        (errno.EDQUOT, r"this user's quota is used up on the disk that holds /data \(42 bytes left\); free"),
    ],
)
def test_a_full_disk_is_named_with_what_is_left(left: None, number: int, sentence: str) -> None:
    error = translated(OSError(number, "no"), Path("/data"))
    assert isinstance(error, StorageFullError)
    with pytest.raises(StorageFullError, match=sentence):
        raise error


def test_other_errors_stay_what_they_are(left: None) -> None:
    error = OSError(errno.EACCES, "no")
    assert translated(error, Path("/data")) is error


def test_what_is_needed_is_held_against_what_is_left(left: None, tmp_path: Path) -> None:
    check_room(tmp_path, 42)
    with pytest.raises(StorageFullError, match=r"43 bytes are needed .* has 42 left; free some space there"):
        check_room(tmp_path, 43)


def test_a_folder_that_is_still_to_be_made_is_on_the_disk_of_those_above(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "to" / "come") == pytest.approx(free_bytes(tmp_path), rel=0.2)


def test_a_system_that_does_not_say_what_is_left_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(_: object) -> None:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    check_room(tmp_path, 1 << 60)
    assert "bytes left" not in str(full(tmp_path))


def test_a_full_disk_is_seen_behind_what_a_library_made_of_it() -> None:
    full_disk = OSError(errno.ENOSPC, "no")

    def wrapped(*, on_purpose: bool) -> Exception:
        try:
            try:
                raise full_disk
            except OSError as error:
                if on_purpose:
                    raise ValueError("cannot be saved") from error
                raise ValueError("cannot be saved")  # noqa: B904
        except ValueError as error:
            return error

    assert is_full(full_disk)
    assert is_full(wrapped(on_purpose=True))
    assert is_full(wrapped(on_purpose=False))
    assert not is_full(OSError(errno.EIO, "no"))
    assert not is_full(ValueError("no"))
