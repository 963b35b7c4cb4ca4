"""The rows that wait for one engine, and how a batch is formed of them."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.tensors import Array
from service.timeline import EngineRun, Timeline

ItemShapes = tuple[tuple[int, ...], ...]
"""The shapes of one row, input by input in the model's order: only rows of equal ones can share a batch."""


class DepartedError(Exception):
    """The client of a waiting request has gone; nobody reads its answer."""


@dataclass(kw_only=True, slots=True, eq=False)
class Waiting:
    """One admitted request until it is answered. Times are those of `time.perf_counter`."""

    # One C-contiguous array per input, rows along axis 0.
    feeds: dict[str, Array]
    rows: int
    arrived_s: float
    deadline_s: float
    # Gets the outputs, or the error.
    answer: asyncio.Future[dict[str, Array]]
    # Whether the client has left.
    gone: Callable[[], bool]
    # How it is called in log lines: the engine's thread and the batch have no context of one request.
    request_id: bytes = b""
    # Where somebody wants to see when what happened.
    timeline: Timeline | None = None
    # Outputs of the parts that have run, by the row that they start at.
    done: dict[int, dict[str, Array]] = field(default_factory=dict)
    parts: int = 1

    def abandoned(self) -> bool:
        """Whether an answer would reach nobody: timed out, failed, cancelled, or client gone."""
        if not self.answer.done() and self.gone():
            self.answer.set_exception(DepartedError())
        return self.answer.done()

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless it is answered already."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def answer_part(self, part: "Part", outputs: dict[str, Array]) -> None:
        """Takes the outputs of one part and answers once all parts have theirs."""
        if self.answer.done():
            return
        if self.parts == 1:
            self.answer.set_result(outputs)
            return
        self.done[part.start] = outputs
        if len(self.done) == self.parts:
            pieces = [self.done[start] for start in sorted(self.done)]
            self.answer.set_result(
                {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive rows of one request that run in one batch; all of them unless the request is oversize."""

    request: Waiting
    start: int
    rows: int

    def rows_of(self, name: str) -> Array:
        """These rows of the input `name`."""
        array = self.request.feeds[name]
        return array if self.rows == self.request.rows else array[self.start : self.start + self.rows]


def note_run(parts: Sequence[Part], started_s: float, ended_s: float) -> None:
    """Tells the timelines of a batch, where it has any, when it ran."""
    watched = [part.request.timeline for part in parts if part.request.timeline is not None]
    if not watched:
        return
    run = EngineRun(
        started_s=started_s,
        ended_s=ended_s,
        rows=sum(part.rows for part in parts),
        requests=len(parts),
        watched=watched,
    )
    for timeline in watched:
        timeline.runs.append(run)


class RowQueue:
    """Waiting parts, first come first served, kept apart by item shape."""

    def __init__(self) -> None:
        self._by_shape: dict[ItemShapes, deque[Part]] = {}
        # Rows that wait, those of abandoned requests included until a batch forms.
        self.rows = 0

    def push(self, shapes: ItemShapes, part: Part) -> None:
        """Puts a part at the end."""
        self._by_shape.setdefault(shapes, deque()).append(part)
        self.rows += part.rows

    def next_shapes(self) -> ItemShapes | None:
        """The item shapes of the part that has waited longest, or None where nothing waits."""
        if not self._by_shape:
            return None
        return min(self._by_shape, key=lambda shapes: self._by_shape[shapes][0].request.arrived_s)

    def oldest_s(self) -> float:
        """When the part that has waited longest arrived; something must wait."""
        return min(parts[0].request.arrived_s for parts in self._by_shape.values())

    def fills(self, max_rows: int) -> bool:
        """Whether the next batch would be full."""
        shapes = self.next_shapes()
        if shapes is None or self.rows < max_rows:
            return False
        return len(self._by_shape) == 1 or sum(part.rows for part in self._by_shape[shapes]) >= max_rows

    def take(self, max_rows: int) -> list[Part]:
        """Forms a batch: the parts that waited longest, of one item shape, at most `max_rows` rows together.

        Parts of abandoned requests are dropped on the way. The first part is taken whatever its size. Empty
        where nothing waits.
        """
        batch: list[Part] = []
        while not batch and (shapes := self.next_shapes()) is not None:
            parts, room = self._by_shape[shapes], max_rows
            while parts and (not batch or parts[0].rows <= room):
                part = parts.popleft()
                self.rows -= part.rows
                if not part.request.abandoned():
                    batch.append(part)
                    room -= part.rows
            if not parts:
                del self._by_shape[shapes]
        return batch

    def drain(self) -> list[Part]:
        """Empties the queue."""
        parts = [part for waiting in self._by_shape.values() for part in waiting]
        self._by_shape.clear()
        self.rows = 0
        return parts
