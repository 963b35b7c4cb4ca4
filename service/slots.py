"""The batch sizes that an engine runs, and the buffers that its batches are written into."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from engines.runtimes.base import Engine, Slot

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every input of one batch."""


@dataclass(frozen=True, kw_only=True)
class BatchRules:
    """What batches an engine may be given."""

    # Whether rows of different requests may share a batch: proven when the version was verified.
    batchable: bool
    # The batch sizes to run, rising; a batch in between is padded. Where rows may not share a batch, requests
    # run in the size that they have, and only the last of these counts.
    sizes: tuple[int, ...]

    @property
    def max_rows(self) -> int:
        """Rows that a batch takes at most."""
        return self.sizes[-1]

    def size_for(self, rows: int) -> int:
        """The smallest batch size that takes `rows` rows, which are at most `max_rows`."""
        return self.sizes[bisect.bisect_left(self.sizes, rows)]


class SlotPool:
    """Slots of one engine that no batch is using, by the shapes of their batch.

    At most as many slots of one shape come to be as are in use at the same time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._free: dict[tuple[tuple[int, ...], ...], list[Slot]] = {}

    def take(self, shapes: Shapes) -> Slot:
        """A slot for a batch of these shapes, until it is given back."""
        free = self._free.get(tuple(shapes.values()))
        return free.pop() if free else self._engine.slot(shapes)

    def give(self, shapes: Shapes, slot: Slot) -> None:
        """Takes back a slot whose outputs have been copied."""
        self._free.setdefault(tuple(shapes.values()), []).append(slot)
