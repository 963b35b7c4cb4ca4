"""A lock that one process at a time holds; the kernel takes it back when the process ends, in any way."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import StartError

_POLL_S = 0.05


@contextlib.contextmanager
def exclusive(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`, in which the holder's process id is written for people.

    Raises:
        StartError: somebody else held it for all of `wait_s`; the message says who.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        _acquire(file.fileno(), path, wait_s)
        # For people alone: a full disk must keep nobody from starting.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


def _acquire(handle: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                holder = path.read_text(encoding="ascii") or "unknown"
                raise StartError(
                    f"{path.parent} is in use by another octet, process {holder}; "
                    "stop that one first, or set OCTET_HOME to a folder of its own."
                ) from error
            time.sleep(_POLL_S)
        else:
            return
