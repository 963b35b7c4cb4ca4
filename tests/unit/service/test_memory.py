import os
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
