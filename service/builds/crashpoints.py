"""Named instants at which a test may have this process killed, to show that nothing is lost there.

Each stands before or after a durable write. Without OCTET_CRASH_PLAN in the environment they do nothing.
"""

import fcntl
import os
import signal
import sys
from pathlib import Path

_PLAN = os.environ.get("OCTET_CRASH_PLAN")
"""A file that a test writes: a line for each kill to come, `<victim> <role> <point>`, carried out one after the
other. The victim is `process` or `service`, the supervisor included; the role is that of the process, `server`
or `worker`. Every point passed is listed beside it."""


def reached(point: str, detail: str = "") -> None:
    """Marks the instant `point`; dies, as under `kill -9`, where a test has planned it next."""
    if _PLAN is not None:
        _follow(Path(_PLAN), f"{Path(sys.argv[0]).stem} {point} {detail}".rstrip())


def _follow(plan: Path, point: str) -> None:
    with plan.with_suffix(".passed").open("a", encoding="ascii") as passed:
        passed.write(f"{point}\n")
    with plan.open("r+", encoding="ascii") as file:
        # Many processes may follow one plan: each kill is carried out once.
        fcntl.flock(file, fcntl.LOCK_EX)
        first, _, rest = file.read().partition("\n")
        victim, _, planned = first.partition(" ")
        if planned != point:
            return
        file.seek(0)
        file.truncate()
        file.write(rest)
    if victim == "service":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
