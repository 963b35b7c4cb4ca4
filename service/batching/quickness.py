"""Which batches are so quick that the event loop runs them itself.

A thread of its own lets the loop go on while an engine works. It has its price: the thread and the loop wake each
other, and each waits for the interpreter's lock while the other holds it, which is up to 5 ms under load. A batch
that is done sooner than that handover is better run where it was formed.
"""

from collections.abc import Hashable

QUICK_S = 1e-4
"""The longest time for which the loop may stand still for an engine: as much as a few requests cost it."""
LEAST_RUNS = 16
"""Batches of a shape that an engine has run in its thread before the loop trusts it."""
_RISE = 1.2
"""How much an estimate rises with a run that took longer: one that was held up by others is no reason."""


class Quickness:
    """How long the batches of one engine take at best, shape by shape. Times in seconds."""

    def __init__(self) -> None:
        # Runs, and the estimate: it falls to a shorter time at once and rises to longer ones step by step.
        self._seen: dict[Hashable, tuple[int, float]] = {}

    def learn(self, shapes: Hashable, took_s: float) -> None:
        """Takes the time of a batch of these shapes."""
        runs, estimate_s = self._seen.get(shapes, (0, took_s))
        self._seen[shapes] = (runs + 1, min(took_s, estimate_s * _RISE))

    def fits_the_loop(self, shapes: Hashable) -> bool:
        """Whether a batch of these shapes may run in the event loop."""
        runs, estimate_s = self._seen.get(shapes, (0, QUICK_S))
        return runs >= LEAST_RUNS and estimate_s < QUICK_S
