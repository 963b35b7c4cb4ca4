"""Files and folders that are still there after the power went."""

import os
from pathlib import Path


def make_durable_folder(folder: Path) -> None:
    """Makes the folder and the missing ones above it, each entry flushed in its parent."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flushes the entries of a folder: what was renamed into it keeps its name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def modified(path: Path) -> float:
    """When the file was last written, in seconds since the epoch."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        # Somebody else has just removed it; infinitely young is left alone.
        return float("inf")
