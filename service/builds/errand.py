"""When a worker that is there for one build has done what it came for.

It decides alone: the queue tells it what goes on, and a clock what time it is.
"""

import time
from collections.abc import Callable
from typing import Protocol

LAST_LOOK_S = 3.0
"""How long the queue is watched after it was told to take nothing more: longer than one of its polls, and than it takes
to note the end of a build."""


class OneBuildQueue(Protocol):
    """What an errand has to know of `service.builds.workflow.BuildQueue`."""

    @property
    def begun(self) -> bool:
        """Whether a build was begun here."""

    @property
    def idle(self) -> bool:
        """Whether nothing is being carried out."""

    def stop_listening(self) -> None:
        """Takes no more builds; what goes on goes on. Idempotent."""


class Errand:
    """One build, or none where none comes within `idle_s`, from the moment this is made."""

    def __init__(
        self, queue: OneBuildQueue, *, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._idle_until_s = clock() + idle_s
        # When the last look ends; None while there is something to wait for.
        self._look_until_s: float | None = None

    def done(self) -> bool:
        """Whether this worker may end now; to be asked again and again."""
        if not self._queue.idle:
            # It may have been taken in the very instant in which we gave up: then it is the one to carry out.
            self._look_until_s = None
            return False
        now_s = self._clock()
        if not self._queue.begun and now_s < self._idle_until_s:
            return False
        if self._look_until_s is None:
            self._queue.stop_listening()
            self._look_until_s = now_s + LAST_LOOK_S
        return now_s >= self._look_until_s
