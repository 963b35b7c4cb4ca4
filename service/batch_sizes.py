"""Which batch sizes an engine runs, and their first runs, which are slow, before a client waits for them."""

import bisect
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from engines.options import Batching
from engines.runtimes.base import Engine
from engines.tensors import TensorSpec

logger = logging.getLogger(__name__)

WARM_UP_S = 5.0
# Every size up to this one; above, four sizes to a doubling: engines keep a limited number of buffers.
_EXACT_ROWS = 32
# Input buffers of all batch sizes together; where they would take more, only powers of two are run.
_BUFFER_BYTES = 256 << 20

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


def warm_up(engine: Engine, limits: Batching, *, batchable: bool, budget_s: float = WARM_UP_S) -> BatchRules:
    """Runs the engine once at each batch size that it will get, for about `budget_s` at most.

    A first run at a new size takes several times as long as later ones, and no client shall wait for it.
    Sizes that were not reached are left out of the rules. A model whose rows have free dimensions is not run
    here: its shapes are its clients' choice, and those of the proof have been run.

    Raises:
        EngineRunError: the engine fails at a size.
    """
    sizes = batch_sizes(engine.inputs, limits.max_batch_rows)
    if any(size is None for spec in engine.inputs for size in spec.item_shape):
        return BatchRules(batchable=batchable, sizes=sizes)
    started_s = time.monotonic()
    warm: list[int] = []
    for size in _order(sizes):
        if warm and time.monotonic() - started_s > budget_s:
            logger.warning("%d of %d batch sizes were warmed up in %.0f s", len(warm), len(sizes), budget_s)
            break
        shapes = {spec.name: (size, *_known(spec)) for spec in engine.inputs}
        # Full batches are written ahead, so the largest size needs a second set of buffers.
        _run_once(engine, shapes, copies=2 if size == sizes[-1] else 1)
        warm.append(size)
    return BatchRules(batchable=batchable, sizes=tuple(sorted(warm)))


def batch_sizes(inputs: tuple[TensorSpec, ...], max_rows: int) -> tuple[int, ...]:
    """The batch sizes to run, rising, up to `max_rows`; the one that the model insists on where it does."""
    fixed = next((spec.fixed_rows for spec in inputs if spec.fixed_rows is not None), None)
    if fixed is not None:
        return (fixed,)
    sizes = {*range(1, min(max_rows, _EXACT_ROWS) + 1), max_rows}
    low = _EXACT_ROWS
    while low < max_rows:
        sizes.update(size for size in range(low, 2 * low, low // 4) if size <= max_rows)
        low *= 2
    if sum(sizes) * _row_bytes(inputs) > _BUFFER_BYTES:
        sizes = {max_rows, *(1 << power for power in range(max_rows.bit_length()))}
    return tuple(sorted(sizes))


def _order(sizes: tuple[int, ...]) -> list[int]:
    """The largest first, then those with the fewest significant bits: 1, 2, 4, ..., 3, 6, 12, ..., 5, 7, 10.

    A warm-up cut short then leaves steps of equal ratio: a half, a quarter or an eighth of the batch.
    """
    return sorted(sizes, key=lambda size: (size != sizes[-1], (size // (size & -size)).bit_length(), size))


def _run_once(engine: Engine, shapes: Shapes, *, copies: int) -> None:
    taken = [engine.slot(shapes) for _ in range(copies)]
    for slot in taken:
        for array in slot.inputs.values():
            array[...] = 0
        slot.run()
    for slot in taken:
        engine.release(slot)


def _known(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.item_shape if size is not None)


def _row_bytes(inputs: tuple[TensorSpec, ...]) -> int:
    sizes = (spec.dtype.itemsize * math.prod(_known(spec)) for spec in inputs)
    return sum(sizes)
