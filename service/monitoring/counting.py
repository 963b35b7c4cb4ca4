"""Counts without locks: one thread counts, the event loop's, and any may read.

prometheus-client's own take a lock and walk their buckets in Python at each value, which was a tenth of what an
inference request costs. These are shown to Prometheus by `service.monitoring.metrics`.
"""

from bisect import bisect_left
from collections.abc import Sequence

# Of each decade, each at most an eighth above the one before: so fine that percentiles can be read off.
_STEPS = (
    *("1", "1.1", "1.2", "1.35", "1.5", "1.65", "1.8", "2", "2.25", "2.5", "2.75"),
    *("3", "3.35", "3.7", "4.1", "4.5", "5", "5.5", "6", "6.7", "7.4", "8.2", "9"),
)
LATENCY_BOUNDS_S = (*(float(f"{step}e{power}") for power in range(-5, 2) for step in _STEPS), 100.0)
"""From 10 microseconds to past the default timeout."""


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Adds to it."""
        self.value += by


class Distribution:
    """How many values were at most each of `bounds`, rising, and what they came to in all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        # Values above the bound before and at most this one; the last has those above all bounds.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that `share` of the values, 0 to 1, are at most; None where there are none.

    Taken as spread evenly between two bounds, so it is off by an eighth at most with `LATENCY_BOUNDS_S`; of values
    above all bounds the last bound.
    """
    wanted, below = share * sum(counts), 0
    for index, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= wanted:
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(0.0, wanted - below) / count
        below += count
    return bounds[-1] if sum(counts) else None
