"""The control groups that this process is in: what a container may use is written there."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Controllers and path of each line of /proc/self/cgroup; v2's line has no controllers."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield parts[1], parts[2]


def lineage(mount: Path, group: str) -> Iterator[Path]:
    """The group's folder and its ancestors up to the mount, which alone exists inside most containers."""
    for path in (PurePosixPath(group), *PurePosixPath(group).parents):
        yield mount / path.as_posix().lstrip("/")
