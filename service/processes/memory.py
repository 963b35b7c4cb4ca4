"""How much memory a process holds, how much there is, and giving back what is free."""

import ctypes
import gc
import os
import subprocess
from pathlib import Path

from service.processes.cgroups import lineage, memberships

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_M_ARENA_MAX = -8
"""glibc's malloc.h."""


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except FileNotFoundError:
        return 0 if Path("/proc/self").exists() else _from_ps(pid)
    except ProcessLookupError:
        return 0
    return pages * _PAGE_BYTES


def give_back() -> None:
    """Returns to the system what the interpreter and the C library keep of freed memory, where that is glibc.

    A collection empties the interpreter's stores of freed objects, which are strewn over all that was ever used and
    keep it. In a server, where what was there at the start is frozen, it takes a millisecond or two.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_together() -> None:
    """Has all threads that begin from now on take memory from one place, where the C library is glibc.

    Else threads get heaps of their own, and what a model leaves behind is strewn over all of them, in pages that are
    never free as a whole. With three models that come and go, the server had 328 MiB after the first round and 371
    after the eighth, where it did not end; from one heap 317 and 328. Threads of engines hardly allocate, and those of
    Python have one lock anyway.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, 1)


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may use: the least of the machine's memory and the cgroup's limits.

    Reads `memory.max` of cgroup v2 and `memory.limit_in_bytes` of v1 (kernel documentation,
    admin-guide/cgroup-v2 and cgroup-v1/memory). `root` is where `proc` and `sys` are looked for.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES]
    mount = root / "sys/fs/cgroup"
    for controllers, group in memberships(root):
        if controllers == "":
            files = [folder / "memory.max" for folder in lineage(mount, group)]
        elif "memory" in controllers.split(","):
            files = [folder / "memory.limit_in_bytes" for folder in lineage(mount / "memory", group)]
        else:
            continue
        limits += [limit for file in files if (limit := _limit(file)) is not None]
    return min(limits)


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        # "max", or not there.
        return None


def _from_ps(pid: int) -> int:
    """Where there is no /proc, as on macOS."""
    answer = subprocess.run(  # noqa: S603 - a constant command and a number
        ["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return int(answer.stdout or 0) * 1024
