"""How long one run of an engine takes, briefly measured."""

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from engines.model.tensors import Array
from engines.runtimes.base import Engine, Slot

BUDGET_S = 0.2
"""Measuring time per engine and batch size; a run that takes longer is measured once."""


def latencies_ms(
    engines: Sequence[Engine], feeds: Mapping[str, Array], *, budget_s: float = BUDGET_S
) -> list[float]:
    """Median milliseconds of one run of each engine on one batch, its buffers already written.

    The engines take turns, so that a machine that is busy with something else slows all of them.

    Raises:
        EngineRunError: an engine fails on the batch.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    slots = [engine.slot(shapes) for engine in engines]
    try:
        for slot in slots:
            for name, buffer in slot.inputs.items():
                np.copyto(buffer, feeds[name], casting="no")
            # The first run of a shape allocates and chooses kernels.
            slot.run()
        return slots_ms(slots, budget_s=budget_s)
    finally:
        for engine, slot in zip(engines, slots, strict=True):
            engine.release(slot)


def slots_ms(slots: Sequence[Slot], *, budget_s: float) -> list[float]:
    """Median milliseconds of one run of each slot, which have run before; they take turns.

    Raises:
        EngineRunError: the engine fails on the batch.
    """
    taken_s: list[list[float]] = [[] for _ in slots]
    end_s = time.perf_counter() + budget_s * len(slots)
    while not taken_s[-1] or time.perf_counter() < end_s:
        for times, slot in zip(taken_s, slots, strict=True):
            start_s = time.perf_counter()
            slot.run()
            times.append(time.perf_counter() - start_s)
    return [statistics.median(times) * 1e3 for times in taken_s]


def repeated(feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """A batch of `rows` rows, those of `feeds` over and over."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in feeds.items()}
