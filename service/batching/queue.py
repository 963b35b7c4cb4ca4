"""The rows that wait for one engine, and how a batch is formed of them."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engines.model.tensors import Array
from service.monitoring.timeline import Timeline

ItemShapes = tuple[tuple[int, ...], ...]
"""The shapes of one row, input by input in the model's order: only rows of equal ones can share a batch."""

PRIORITY_STEP_S = 1.0
"""How much later than it did a request counts as arrived for each level below the highest priority."""
DEFAULT_PRIORITY = 2
"""Of a request that names none, so that 1, the highest, is ahead of it."""
LOWEST_PRIORITY = 8
"""What is asked for below counts as this."""


class DepartedError(Exception):
    """The client of a waiting request has gone; nobody reads its answer."""


def turn_s(arrived_s: float, priority: int | None) -> float:
    """When a request's turn comes, on the clock of `arrived_s`: requests are served in the order of this.

    It is fixed on arrival, so nobody starves: however many requests of the highest priority come, one of level p
    is overtaken only by those that came within p - 1 steps of it.
    """
    level = min(priority or DEFAULT_PRIORITY, LOWEST_PRIORITY)
    return arrived_s + (level - 1) * PRIORITY_STEP_S


class Caller(Protocol):
    """Who waits for the answer to a request, in the event loop; none of these raises."""

    # How the request is called in log lines: the engine's thread and the batch have no context of one request.
    request_id: bytes
    # Where somebody wants to see when what happened.
    timeline: Timeline | None

    def has_left(self) -> bool:
        """Whether nobody would read an answer any more."""

    def answered(self, outputs: dict[str, Array]) -> None:
        """Takes the outputs."""

    def failed(self, error: Exception) -> None:
        """Takes the reason why there are none."""


@dataclass(kw_only=True, slots=True, eq=False)
class Waiting:
    """One admitted request until it is settled: answered, failed or left. Times are those of `time.perf_counter`."""

    # One C-contiguous array per input, rows along axis 0.
    feeds: dict[str, Array]
    rows: int
    arrived_s: float
    # See the function `turn_s`.
    turn_s: float
    deadline_s: float
    caller: Caller
    # Called once it is settled, before its caller is.
    on_settled: Callable[["Waiting"], None]
    settled: bool = False
    parts: int = 1
    # Outputs of the parts that have run, by the row that they start at; None where there is one part.
    done: dict[int, dict[str, Array]] | None = None

    def abandoned(self) -> bool:
        """Whether an answer would reach nobody: timed out, failed, or client gone."""
        if not self.settled and self.caller.has_left():
            self.fail(DepartedError())
        return self.settled

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless it is settled already."""
        if not self.settled:
            self._settle()
            self.caller.failed(error)

    def answer_part(self, part: "Part", outputs: dict[str, Array]) -> None:
        """Takes the outputs of one part and answers once all parts have theirs."""
        if self.settled:
            return
        if self.parts > 1:
            done = self.done = self.done or {}
            done[part.start] = outputs
            if len(done) < self.parts:
                return
            pieces = [done[start] for start in sorted(done)]
            outputs = {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}
        self._settle()
        self.caller.answered(outputs)

    def _settle(self) -> None:
        self.settled = True
        self.on_settled(self)


# Not frozen: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True, eq=False)
class Part:
    """Consecutive rows of one request that run in one batch; all of them unless the request is oversize."""

    request: Waiting
    start: int
    rows: int

    def rows_of(self, name: str) -> Array:
        """These rows of the input `name`."""
        array = self.request.feeds[name]
        return array if self.rows == self.request.rows else array[self.start : self.start + self.rows]


@dataclass(kw_only=True, slots=True)
class _Line:
    """The parts of one item shape."""

    # A heap by turn, then by arrival here.
    parts: list[tuple[float, int, Part]] = field(default_factory=list)
    rows: int = 0


class RowQueue:
    """Waiting parts by their turn, kept apart by item shape: whatever the shape, the earliest turn goes next."""

    def __init__(self) -> None:
        self._lines: dict[ItemShapes, _Line] = {}
        self._numbers = itertools.count()
        # Rows that wait, those of abandoned requests included until a batch forms.
        self.rows = 0

    def push(self, shapes: ItemShapes, part: Part) -> None:
        """Puts a part where its turn is, behind those of the same turn."""
        line = self._lines.get(shapes)
        if line is None:
            line = self._lines[shapes] = _Line()
        heapq.heappush(line.parts, (part.request.turn_s, next(self._numbers), part))
        line.rows += part.rows
        self.rows += part.rows

    def next_shapes(self) -> ItemShapes | None:
        """The item shapes of the part whose turn is next, or None where nothing waits."""
        if len(self._lines) < 2:
            return next(iter(self._lines), None)
        return min(self._lines, key=lambda shapes: self._lines[shapes].parts[0][:2])

    def next_rows(self) -> int:
        """The rows that could share the next batch."""
        shapes = self.next_shapes()
        return 0 if shapes is None else self._lines[shapes].rows

    def oldest_s(self) -> float:
        """When the part that has waited longest arrived; something must wait."""
        return min(part.request.arrived_s for line in self._lines.values() for _, _, part in line.parts)

    def fills(self, max_rows: int) -> bool:
        """Whether the next batch would be full."""
        return self.rows >= max_rows and self.next_rows() >= max_rows

    def take(self, max_rows: int, enough: int | None = None) -> list[Part]:
        """Forms a batch: the parts whose turn is next, of one item shape, at most `max_rows` rows together.

        With `enough` rows it is closed, although more would fit; the part that goes beyond belongs to it.
        Parts of abandoned requests are dropped on the way. The first part is taken whatever its size. Empty
        where nothing waits.
        """
        batch: list[Part] = []
        while not batch and (shapes := self.next_shapes()) is not None:
            line, room = self._lines[shapes], max_rows
            least_room = 0 if enough is None else max_rows - enough
            while line.parts and (not batch or (room > least_room and line.parts[0][2].rows <= room)):
                part = heapq.heappop(line.parts)[2]
                line.rows -= part.rows
                self.rows -= part.rows
                if not part.request.abandoned():
                    batch.append(part)
                    room -= part.rows
                elif not batch:
                    # Now the turn of another shape may be next.
                    break
            if not line.parts:
                del self._lines[shapes]
        return batch

    def drain(self) -> list[Part]:
        """Empties the queue."""
        parts = [part for line in self._lines.values() for _, _, part in line.parts]
        self._lines.clear()
        self.rows = 0
        return parts
