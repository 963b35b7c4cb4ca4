"""Which batch sizes and row lengths an engine runs; what lies in between is padded."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.model.tensors import Array, TensorSpec
from engines.proof.padding import Padding
from service.batching.queue import ItemShapes

# Every size up to this one; above, four sizes to a doubling: engines keep a limited number of buffers.
_EXACT_ROWS = 32
# Input buffers of all batch sizes together, where each has its own; where they would take more, only powers of two
# are run.
_BUFFER_BYTES = 256 << 20
# From this share of the most rows a second on, even batches are worth more than the rest.
_CLOSE = 0.9
# What a batch takes beside its time in the engine.
_BATCH_S = 1e-4
# Rows shorter than a sixteenth of the longest, or than this, are padded to that.
_SHORTEST = 16
_LENGTHS_TO_SHORTEST = 16


@dataclass(frozen=True, kw_only=True)
class BatchRules:
    """What batches an engine may be given."""

    # Whether rows of different requests may share a batch: proven when the version was verified.
    batchable: bool
    # The batch sizes to run, rising; a batch in between is padded. Where rows may not share a batch, requests
    # run in the size that they have, and only the last of these counts.
    sizes: tuple[int, ...]
    # How rows of different lengths share a batch, proven likewise; None where they may not.
    padding: Padding | None = None
    # The lengths that rows are padded to, rising; longer rows run in their own. Empty without padding.
    lengths: tuple[int, ...] = ()
    # How long a batch of each of `sizes` takes, in seconds; empty where that is not known.
    times_s: tuple[float, ...] = ()

    @property
    def max_rows(self) -> int:
        """Rows that a batch takes at most."""
        return self.sizes[-1]

    def size_for(self, rows: int) -> int:
        """The smallest batch size that takes `rows` rows, which are at most `max_rows`."""
        return self.sizes[bisect.bisect_left(self.sizes, rows)]

    def rows_now(self, waiting: int, recent: Sequence[int]) -> int:
        """How many of the rows that wait are enough for the next batch, after batches of `recent` rows, one a lane.

        All, unless that makes batches uneven for nothing. Clients that are answered come back: where 16 of them have
        a request each and all that waits is taken, batches of 1 and of 15 rows may follow each other for ever. While
        the one row runs the others cannot all come in, and an engine sets itself up anew for each shape. With the
        mean of what waits and of what has just run, both have 8. It is taken where it gives about as many rows a
        second.
        """
        rows = min(waiting, self.max_rows)
        even = -(-(waiting + sum(recent)) // (1 + len(recent)))
        if rows == self.max_rows or even >= rows or not self.times_s:
            return rows
        # What would be padding costs nothing.
        even = min(rows, self.size_for(even))
        return even if self._pace(even) >= _CLOSE * self._pace(rows) else rows

    def _pace(self, rows: int) -> float:
        """Rows a second in batches of so many."""
        return rows / (self.times_s[bisect.bisect_left(self.sizes, rows)] + _BATCH_S)

    def item_shapes(self, feeds: Mapping[str, Array]) -> ItemShapes:
        """The shapes that the rows of a request run in: their own, or padded to the next length."""
        # Not by a generator, which costs more than what it does here.
        shapes = tuple([array.shape[1:] for array in feeds.values()])
        if self.padding is None:
            return shapes
        length = self.padding.length_of({name: array.shape for name, array in feeds.items()})
        if length is None or length > self.lengths[-1]:
            return shapes
        padded = self.lengths[bisect.bisect_left(self.lengths, length)]
        return tuple(
            with_length(shape, self.padding.inputs.get(name), padded)
            for name, shape in zip(feeds, shapes, strict=True)
        )


def with_length(item_shape: tuple[int, ...], axis: int | None, length: int) -> tuple[int, ...]:
    """The shape of a row whose `axis`, the batch being axis 0, has another length; None is a row without one."""
    return item_shape if axis is None else (*item_shape[: axis - 1], length, *item_shape[axis:])


def batch_sizes(
    inputs: tuple[TensorSpec, ...], max_rows: int, *, few: bool = False, shared: bool = False
) -> tuple[int, ...]:
    """The batch sizes to run, rising, up to `max_rows`; the one that the model insists on where it does.

    `few` is for models that run each of them in many lengths, `shared` for engines whose batches of all sizes lie in
    the same memory.
    """
    fixed = next((spec.fixed_rows for spec in inputs if spec.fixed_rows is not None), None)
    if fixed is not None:
        return (fixed,)
    exact = 2 if few else _EXACT_ROWS
    sizes = {*range(1, min(max_rows, exact) + 1), max_rows, *_steps(exact, max_rows, 2 if few else 4)}
    if not shared and sum(sizes) * _row_bytes(inputs) > _BUFFER_BYTES:
        sizes = {max_rows, *(1 << power for power in range(max_rows.bit_length()))}
    return tuple(sorted(sizes))


def row_lengths(longest: int) -> tuple[int, ...]:
    """The lengths that rows are padded to, rising, up to `longest`; a fifth is padding at most but in the shortest."""
    shortest = max(_SHORTEST, longest // _LENGTHS_TO_SHORTEST)
    if longest <= shortest:
        return (longest,)
    return tuple(sorted({*_steps(1 << (shortest - 1).bit_length(), longest, 4), longest}))


def _steps(low: int, most: int, steps: int) -> list[int]:
    """From `low`, a power of two, to `most` at most, so many numbers to a doubling."""
    numbers = []
    while low <= most:
        numbers += [number for number in range(low, 2 * low, max(1, low // steps)) if number <= most]
        low *= 2
    return numbers


def _row_bytes(inputs: tuple[TensorSpec, ...]) -> int:
    return sum(
        spec.dtype.itemsize * math.prod(size for size in spec.item_shape if size is not None)
        for spec in inputs
    )
