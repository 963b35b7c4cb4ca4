"""Disks that are full, or of which this user has had all that it may have."""

import errno
import shutil
from pathlib import Path

from service.errors import StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Whether the operating system said so, whoever passed it on."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def translated(error: OSError, folder: Path) -> Exception:
    """The error to raise for one of the operating system, met while something was written into `folder`."""
    return full(folder, quota=error.errno == errno.EDQUOT) if error.errno in _FULL else error


def full(folder: Path, *, quota: bool = False) -> StorageFullError:
    """The error of a disk without room."""
    left_bytes = free_bytes(folder)
    seen = "" if left_bytes is None else f" ({left_bytes} bytes left)"
    what = "this user's quota is used up" if quota else "no room is left"
    return StorageFullError(
        f"{what} on the disk that holds {folder}{seen}; free some space there and try again."
    )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuses what the disk that holds `folder` has no room for, before any of it is written.

    Raises:
        StorageFullError: it has fewer bytes left.
    """
    left_bytes = free_bytes(folder)
    if left_bytes is not None and needed_bytes > left_bytes:
        raise StorageFullError(
            f"{needed_bytes} bytes are needed and the disk that holds {folder} has {left_bytes} left; "
            "free some space there and try again."
        )


def free_bytes(path: Path) -> int | None:
    """What this user may still write to the disk that holds `path`; None where the system does not say."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None
