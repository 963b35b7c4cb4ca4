"""What each channel of an activation reaches, and a sample of its rows: all that smoothing asks of the samples.

A channel is an index of the axis that a layer sums over: the last one of a matrix product, axis 1 of a convolution. A
row is the channels at one place of the others. The largest magnitudes merge exactly. The sample keeps the rows of the
smallest keys, a fixed hash of the row's number, so it is uniform, bounded, and the same whatever the batches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import CalibrationError
from engines.model.model import Model
from engines.model.tensors import Array
from engines.runtimes.reference import ReferenceSession

Floats = NDArray[np.float32]

MOST_ROWS = 512
"""Rows kept of a tensor: the error of a matrix product over so many varies by a few per cent."""
_FEWEST_ROWS = 64
_KEPT_BYTES = 256 * 2**20
"""What the kept rows of all tensors may take, unless that left fewer than `_FEWEST_ROWS` of each."""


@dataclass(frozen=True, kw_only=True)
class ChannelRange:
    """One activation, over all samples."""

    # [K], the largest magnitude of each channel.
    absmax: Floats
    # [at most MOST_ROWS, K]
    rows: Floats


def observe_channels(
    model: Model,
    tensors: Sequence[str],
    batches: Iterable[Mapping[str, Array]],
    *,
    threads: int,
    progress: Callable[[int], None],
    axis: int = -1,
) -> dict[str, ChannelRange]:
    """Channel ranges of `tensors`, floating tensors of `model` whose `axis` has a fixed size, over all batches.

    `progress` is called with the number of samples seen so far after every batch.

    Raises:
        CalibrationError: a tensor held NaN or infinity.
        EngineRunError: the model failed on a batch.
    """
    session = ReferenceSession(model.proto, outputs=tensors, threads=threads, fused=True)
    samples = {name: _Sample(_KEPT_BYTES // max(1, len(tensors))) for name in tensors}
    seen = 0
    for feeds in batches:
        for name, values in session.run(feeds).items():
            rows = np.moveaxis(values.astype(np.float32, copy=False), axis, -1)
            if not samples[name].add(rows.reshape(-1, rows.shape[-1])):
                raise CalibrationError(
                    f"the FP32 model's own tensor {name!r} is not finite on the samples from row {seen} on; check"
                    " the model with these samples before quantizing it."
                )
        seen += len(next(iter(feeds.values())))
        progress(seen)
    return {name: sample.range() for name, sample in samples.items() if sample.seen}


class _Sample:
    """The running maximum of each channel, and the rows of the smallest keys so far."""

    def __init__(self, budget_bytes: int) -> None:
        self.seen = 0
        self._budget_bytes = budget_bytes
        self._absmax: Floats = np.zeros(0, np.float32)
        self._rows: Floats = np.zeros((0, 0), np.float32)
        self._keys: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def add(self, rows: Floats) -> bool:
        """Adds rows [N, K]; False where one of their values is not finite."""
        if not len(rows):
            return True
        absmax = np.abs(rows).max(axis=0)
        if not np.isfinite(absmax).all():
            return False
        keys = _keys(self.seen, len(rows))
        if not self.seen:
            self._absmax, self._rows = np.zeros_like(absmax), rows[:0]
        self._absmax = np.maximum(self._absmax, absmax)
        size = min(MOST_ROWS, max(_FEWEST_ROWS, self._budget_bytes // (4 * rows.shape[1])))
        # Of the new rows, only those that could displace a kept one are copied.
        fresh = np.argsort(keys, kind="stable")[:size]
        keys = np.concatenate([self._keys, keys[fresh]])
        kept = np.argsort(keys, kind="stable")[:size]
        self._rows = np.concatenate([self._rows, rows[fresh]])[kept]
        self._keys = keys[kept]
        self.seen += len(rows)
        return True

    def range(self) -> ChannelRange:
        return ChannelRange(absmax=self._absmax, rows=self._rows)


def _keys(first: int, count: int) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators") of the rows' numbers."""
    state = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)), np.uint64)
