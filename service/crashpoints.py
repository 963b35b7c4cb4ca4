"""Named instants at which a test may have this process killed, to show that nothing is lost there.

Each stands before or after a durable write. Without OCTET_CRASH_POINT in the environment they do nothing.
"""

import os
import signal

_WANTED = os.environ.get("OCTET_CRASH_POINT", "")
"""`<point>` kills at the first arrival, `<point>:<n>` at the n-th; unset in production."""


class _Countdown:
    def __init__(self, wanted: str) -> None:
        self.point, _, count = wanted.partition(":")
        self.left = int(count or 1)


_countdown = _Countdown(_WANTED) if _WANTED else None


def reached(point: str) -> None:
    """Marks the instant `point`; kills the process, as `kill -9` does, where a test has asked for it."""
    if _countdown is None or point != _countdown.point:
        return
    _countdown.left -= 1
    if _countdown.left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
