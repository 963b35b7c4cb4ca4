"""Signals that end a command: it leaves nothing behind."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128
"""A shell's exit status of a command that a signal ended is this plus the signal's number."""


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Has a signal leave the block as SystemExit does, so that what stands in `finally` is done.

    Further signals are ignored then. Only for the main thread.
    """
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(_SIGNALLED + number)
