"""How much memory a process holds, how much there is, and giving back what is free."""

import ctypes
import os
import subprocess
from pathlib import Path

from service.processes.cgroups import lineage, memberships

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


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
    """Returns to the system what the C library keeps of freed memory, where it is glibc, which keeps it for long."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
