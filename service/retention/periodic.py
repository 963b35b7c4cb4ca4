"""Sweeps now and then, in a thread: a slow store keeps nobody waiting."""

import logging
import random
import threading
import time
from collections.abc import Callable

from service.retention.sweeper import Sweeper

logger = logging.getLogger(__name__)

AT_ONCE_S = 5.0
"""How often is looked for samples that are to go as soon as their build has ended."""
_JITTER = 0.2
"""Processes that were started together do not ask the database together for ever."""


class PeriodicSweeps:
    """From `start` to `stop`."""

    def __init__(self, sweeper: Sweeper, *, every_s: float) -> None:
        self._sweeper = sweeper
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="octet-sweeps", daemon=True)

    def start(self) -> None:
        """Begins; the first sweep comes after a part of the interval."""
        self._thread.start()

    def stop(self) -> None:
        """Ends. A sweep that goes on in its thread is left to itself: it may be cut off anywhere. Idempotent."""
        self._stopped.set()

    def _run(self) -> None:
        due_s = time.monotonic() + self._every_s * random.random()  # noqa: S311 # no secret
        while not self._stopped.wait(min(AT_ONCE_S, self._every_s)):
            self._try(self._sweeper.remove_samples_at_once)
            if time.monotonic() >= due_s:
                self._try(self._sweeper.sweep_when_due)
                due_s = time.monotonic() + self._every_s * random.uniform(1, 1 + _JITTER)  # noqa: S311 # no secret

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            # Whatever it is, it must not be the last sweep.
            logger.exception("a sweep failed; the next one comes in %g s or less", self._every_s)
