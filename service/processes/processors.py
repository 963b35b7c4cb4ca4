"""How many processors this process may use: the least of the affinity mask and the cgroup's quota.

OpenVINO, onnxruntime and numba each guess from the processors that they see, in a container the whole host's;
octet computes one budget and hands it to all of them.
"""

import math
import os
from pathlib import Path

from service.processes.cgroups import lineage, memberships


def processor_budget(root: Path = Path("/")) -> int:
    """Processors to use, at least 1. `root` is where `proc` and `sys` are looked for.

    A quota of 2.5 processors gives 2: a third thread would only run into the kernel's throttle.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return available if quota is None else max(1, min(available, math.floor(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The tightest quota of this process's cgroup and its ancestors, in processors; None without one.

    Reads `cpu.max` of cgroup v2 and `cpu.cfs_quota_us` over `cpu.cfs_period_us` of v1 (kernel documentation,
    admin-guide/cgroup-v2 and scheduler/sched-bwc).
    """
    mount = root / "sys/fs/cgroup"
    quotas: list[float] = []
    for controllers, group in memberships(root):
        if controllers == "":
            quotas += [q for folder in lineage(mount, group) if (q := _v2(folder)) is not None]
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                quotas += [q for folder in lineage(mount / name, group) if (q := _v1(folder)) is not None]
    return min(quotas, default=None)


def _v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _v1(folder: Path) -> float | None:
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
