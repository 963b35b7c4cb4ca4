"""Who runs next on the processors that all engines share.

Every engine may use the device's threads, so as many batches run at a time as there are lanes, whatever the
number of models: threads are never oversubscribed. A free lane goes to the batcher that has used the least engine
time (start-time fair queueing, Goyal, Vin and Cheng 1996): a busy model slows the others down to an equal share
and no further.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long others wait for an engine that does not come back before they run beside it."""


@dataclass(kw_only=True, slots=True, eq=False)
class Turn:
    """One batcher's claim to the lanes of a device."""

    # Called in the event loop when a lane is free that was refused before.
    wake: Callable[[], None]
    # Seconds in its engine, counted from where the others were when it began.
    used_s: float = 0.0
    # Lanes that it has now.
    held: int = 0
    # Those of them that did not come back in time, and in whose place others were lent.
    late: int = 0


class Device:
    """Lends its lanes to batchers. Lives in one event loop; nothing here blocks."""

    def __init__(self, lanes: int = 1, *, patience_s: float = PATIENCE_S) -> None:
        self.lanes = lanes
        self._patience_s = patience_s
        self._free = lanes
        self._holding: set[Turn] = set()
        self._waiting: set[Turn] = set()
        self._timer: asyncio.TimerHandle | None = None
        # When an engine last came back, on time.monotonic.
        self._came_back_s = 0.0
        # Where the batcher stood that was served last: who was idle has saved nothing, and starts from here.
        self._clock_s = 0.0

    def take(self, turn: Turn) -> bool:
        """Takes a lane for one batch; where none is free, `turn.wake` is called once one is."""
        if self._free <= 0:
            self._waiting.add(turn)
            self._watch(self._patience_s)
            return False
        self._waiting.discard(turn)
        self._holding.add(turn)
        self._free -= 1
        turn.used_s = self._clock_s = max(turn.used_s, self._clock_s)
        turn.held += 1
        return True

    def has_all(self, turn: Turn) -> bool:
        """Whether a batcher has every lane and nobody else waits for one."""
        return turn.held >= self.lanes and self._waiting <= {turn}

    def charge(self, turn: Turn, used_s: float) -> None:
        """Counts engine time of a lane that goes on with the batcher's next batch."""
        turn.used_s += used_s
        self._came_back_s = time.monotonic()

    def give_back(self, turn: Turn, used_s: float, *, wants: bool) -> None:
        """Takes a lane back after `used_s` seconds in the engine; `wants` says that the batcher has more rows."""
        if not turn.held:
            # It had left before its engine came back.
            return
        self.charge(turn, used_s)
        if wants:
            self._waiting.add(turn)
        self._return(turn, 1)

    def leave(self, turn: Turn) -> None:
        """Takes back everything that a batcher has, for good."""
        self._waiting.discard(turn)
        self._return(turn, turn.held)

    def _return(self, turn: Turn, lanes: int) -> None:
        replaced = min(lanes, turn.late)
        turn.held -= lanes
        turn.late -= replaced
        self._free += lanes - replaced
        if not turn.held:
            self._holding.discard(turn)
        self._wake()

    def _wake(self) -> None:
        """Lets those take a lane that have used the least."""
        while self._free > 0 and self._waiting:
            turn = min(self._waiting, key=lambda waiting: max(waiting.used_s, self._clock_s))
            self._waiting.discard(turn)
            turn.wake()
        if self._waiting:
            self._watch(self._patience_s)

    def _watch(self, patience_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._check)

    def _check(self) -> None:
        """Has those that wait run beside engines that do not come back."""
        self._timer = None
        left_s = self._came_back_s + self._patience_s - time.monotonic()
        if not self._waiting:
            return
        if left_s > 0:
            self._watch(left_s)
            return
        logger.error("no engine came back within %.0f s; others run beside it", self._patience_s)
        for turn in self._holding:
            self._free += turn.held - turn.late
            turn.late = turn.held
        self._wake()
