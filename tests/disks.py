"""Small disks of their own, which tests may fill to the last byte."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, *, size_kib: int) -> Iterator[Path]:
    """Mounts one at `folder`, which is made; skips where this user may not."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip(
            "only root may mount a disk; tests/integration/test_full_disk.py runs these in a namespace"
        )
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: what a test still has open there is its own matter.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is left inside of the block."""
    ballast = disk / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
    finally:
        ballast.unlink()
