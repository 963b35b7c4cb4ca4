"""How much memory a process holds."""

import os
import subprocess
from pathlib import Path

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


def _from_ps(pid: int) -> int:
    """Where there is no /proc, as on macOS."""
    answer = subprocess.run(  # noqa: S603 - a constant command and a number
        ["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return int(answer.stdout or 0) * 1024
