"""The first runs of an engine, which are slow, before a client waits for them."""

import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from engines.model.tensors import TensorSpec
from engines.options import Batching
from engines.proof.padding import Padding
from engines.runtimes.base import Engine, Slot
from engines.runtimes.specialising import worth_running
from service.batching.batch_sizes import BatchRules, batch_sizes, row_lengths, with_length

logger = logging.getLogger(__name__)

WARM_UP_S = 5.0
# Of each length there are some ten sizes to run: ten seconds for MiniLM on two cores that do nothing else.
LENGTHS_WARM_UP_S = 60.0
# Then sizes are timed for so long, ...
_TIMING_S = 0.2
# ... each in so many runs, unless these take too long.
_TIMED_RUNS = 3
_TIMED_S = 0.05

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every input of one batch."""


def warm_up(
    engine: Engine,
    limits: Batching,
    *,
    batchable: bool,
    padding: Padding | None = None,
    gains: Mapping[int, float] = MappingProxyType({}),
    budget_s: float | None = None,
) -> BatchRules:
    """Runs the engine once at each batch size and row length that it will get, for about `budget_s` at most.

    A first run at a new shape takes several times as long as later ones, and no client shall wait for it. What was not
    reached is left out of the rules, and so are sizes that run longer than padded to one that `gains` by being compiled
    for. The others are timed. A model whose rows have free dimensions that may not be padded is not run here: its
    shapes are its clients' choice, and those of the proof have been run.

    Raises:
        EngineRunError: the engine fails at a shape.
    """
    if padding is not None:
        return _warm_lengths(engine, limits, padding, LENGTHS_WARM_UP_S if budget_s is None else budget_s)
    sizes = batch_sizes(engine.inputs, limits.max_batch_rows, shared=engine.shares_buffers)
    if any(size is None for spec in engine.inputs for size in spec.item_shape):
        return BatchRules(batchable=batchable, sizes=sizes)
    sizes = worth_running(sizes, gains)
    until_s = time.monotonic() + (WARM_UP_S if budget_s is None else budget_s)
    warm = []
    for size in _in_time(_order(sizes), until_s):
        # Full batches are written ahead, so the largest size needs a second set of buffers.
        _run_once(engine, _shapes(engine.inputs, size), copies=2 if size == sizes[-1] else 1)
        warm.append(size)
    if len(warm) < len(sizes):
        logger.warning("%d of %d batch sizes were warmed up in time", len(warm), len(sizes))
    sizes = tuple(sorted(warm))
    times_s = _times_s(engine, sizes) if batchable and len(sizes) > 1 else ()
    return BatchRules(batchable=batchable, sizes=sizes, times_s=times_s)


def _warm_lengths(engine: Engine, limits: Batching, padding: Padding, budget_s: float) -> BatchRules:
    """Runs every size at one length after the other; one that was not reached in time is left out.

    The powers of two are run however long it takes: rows padded to several times their length would cost more, for as
    long as the engine serves.
    """
    until_s = time.monotonic() + budget_s
    sizes = batch_sizes(engine.inputs, limits.max_batch_rows, few=True, shared=engine.shares_buffers)
    lengths = row_lengths(padding.longest)
    warm = []
    always = sum(length & (length - 1) == 0 or length == lengths[-1] for length in lengths)
    for length in _in_time(_order(lengths), until_s, always=always):
        for size in sizes:
            shapes = _shapes(engine.inputs, size, padding, length)
            _run_once(engine, shapes, copies=2 if size == sizes[-1] else 1)
        warm.append(length)
    if len(warm) < len(lengths):
        logger.warning("%d of %d row lengths were warmed up in time", len(warm), len(lengths))
    return BatchRules(batchable=True, sizes=sizes, padding=padding, lengths=tuple(sorted(warm)))


def _in_time(numbers: Sequence[int], until_s: float, *, always: int = 1) -> Iterable[int]:
    """The first numbers whatever happens, `always` many, and the others as long as there is time."""
    others = itertools.takewhile(lambda _: time.monotonic() < until_s, numbers[always:])
    return itertools.chain(numbers[:always], others)


def _order(numbers: tuple[int, ...]) -> list[int]:
    """The largest first, then those with the fewest significant bits: 1, 2, 4, ..., 3, 6, 12, ..., 5, 7, 10.

    A warm-up cut short then leaves steps of equal ratio: a half, a quarter or an eighth.
    """
    return sorted(
        numbers,
        key=lambda number: (number != numbers[-1], (number // (number & -number)).bit_length(), number),
    )


def _shapes(
    inputs: tuple[TensorSpec, ...], size: int, padding: Padding | None = None, length: int = 0
) -> Shapes:
    """The shapes of a batch of `size` rows, which have `length` places where there is padding."""
    axes = {} if padding is None else padding.inputs
    return {
        spec.name: (size, *with_length(tuple(n or 1 for n in spec.item_shape), axes.get(spec.name), length))
        for spec in inputs
    }


def _times_s(engine: Engine, sizes: Sequence[int]) -> tuple[float, ...]:
    """How long a batch of each size takes, in seconds; of those that there is no time for, as between the others."""
    timed: dict[int, float] = {}
    until_s = time.monotonic() + _TIMING_S
    for size in _in_time(_order(tuple(sizes)), until_s, always=2):
        timed[size] = _shortest_s(engine, _shapes(engine.inputs, size))
    known = sorted(timed)
    return tuple(float(time_s) for time_s in np.interp(sizes, known, [timed[size] for size in known]))


def _shortest_s(engine: Engine, shapes: Shapes) -> float:
    """Of some runs of a batch that has run before: whatever else the machine does only makes them longer."""
    slot, times_s = _filled(engine, shapes), list[float]()
    while len(times_s) < _TIMED_RUNS and sum(times_s) < _TIMED_S:
        started_s = time.perf_counter()
        slot.run()
        times_s.append(time.perf_counter() - started_s)
    engine.release(slot)
    return min(times_s)


def _run_once(engine: Engine, shapes: Shapes, *, copies: int) -> None:
    taken = [_filled(engine, shapes) for _ in range(copies)]
    for slot in taken:
        slot.run()
    for slot in taken:
        engine.release(slot)


def _filled(engine: Engine, shapes: Shapes) -> Slot:
    slot = engine.slot(shapes)
    for array in slot.inputs.values():
        array[...] = 0
    return slot
