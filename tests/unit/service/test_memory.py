import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from service.processes.memory import give_back, memory_limit, resident_bytes

MIB = 1 << 20


def test_knows_what_this_process_holds() -> None:
    before = resident_bytes(os.getpid())
    held = bytearray(os.urandom(32 * MIB))
    assert resident_bytes(os.getpid()) >= before + 30 * MIB
    assert len(held) == 32 * MIB


def test_giving_back_what_is_free_costs_nothing_that_is_used() -> None:
    held = os.urandom(1000)
    give_back()
    assert len(set(held)) > 1


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, None),
        ("0::/a/b\n", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{64 * MIB}\n"}, 64 * MIB),
        ("0::/\n", {"memory.max": f"{32 * MIB}"}, 32 * MIB),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{16 * MIB}\n"}, 16 * MIB),
        # Another controller's group has no say.
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": f"{16 * MIB}\n"}, None),
    ],
)
def test_the_least_of_the_machine_and_its_groups_is_the_limit(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_limit(tmp_path) == (expected or machine)


COUNT_HEAPS = """
import ctypes, sys, threading
from service.processes import memory

if sys.argv[1] == "together":
    memory.keep_together()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
at_once = threading.Barrier(5)

def allocate():
    libc.malloc(1000)
    at_once.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
at_once.wait()
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_take_memory_from_one_heap_once_told_so() -> None:
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", COUNT_HEAPS, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr=")

    assert heaps("together") == 1
    assert heaps("apart") > 1
