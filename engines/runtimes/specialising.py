"""Batch sizes that an engine runs faster when it is compiled for them alone.

An engine of free dimensions chooses kernels and plans its memory at run time. Compiled for a single size it may gain
a tenth or a half, or nothing, or fail inside the runtime; so each size is tried, and kept where it is measured to be
faster and answers alike.
"""

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np

from engines.errors import EngineError
from engines.model.tensors import Array
from engines.proof.company import alike
from engines.reports.latency import repeated, slots_ms
from engines.runtimes.base import Engine, Slot

logger = logging.getLogger(__name__)

LEAST_GAIN = 1.05
"""How much faster a size has to be than with free dimensions: less is noise, and each keeps weights of its own."""
MAX_SPECIAL_BYTES = 128 << 20
"""Size of the weights that all special sizes may keep."""
BUDGET_S = 4.0
"""After this time no further size is tried."""
_MEASURED_S = 0.06


def specialise(
    engine: Engine,
    rows: Mapping[str, Array],
    *,
    max_rows: int,
    weights_bytes: int,
    least_db: float,
    known: Mapping[int, float] | None = None,
) -> dict[int, float]:
    """Compiles an engine for the batch sizes that gain by it, and says how many times as fast each is then.

    Args:
        engine: of a free batch, rows that share it, and no other free dimension.
        rows: what to try it with.
        max_rows: the largest batch.
        weights_bytes: size of the model.
        least_db: how alike answers have to be, see `engines.proof.company`.
        known: what came of it before on this machine; no other sizes are tried then, and none is timed.
    """
    until_s = time.monotonic() + BUDGET_S
    gains: dict[int, float] = {}
    for size in _sizes(max_rows) if known is None else known:
        if (len(gains) + 1) * weights_bytes > MAX_SPECIAL_BYTES or time.monotonic() > until_s:
            break
        feeds = repeated({spec.name: rows[spec.name] for spec in engine.inputs}, size)
        try:
            gain = _gain(engine, feeds, least_db, None if known is None else known[size])
        except (EngineError, RuntimeError) as error:
            # What has failed once is not tried at other sizes.
            logger.info("a batch of %d cannot be compiled by itself: %s", size, error)
            break
        if gain is None:
            break
        if gain >= LEAST_GAIN:
            gains[size] = gain
    return gains


def _sizes(max_rows: int) -> list[int]:
    """Those that batches have most: alone, full, and powers of two in between from the top down."""
    powers = [1 << power for power in range(1, max_rows.bit_length()) if 1 << power < max_rows]
    return list(dict.fromkeys([1, max_rows, *reversed(powers)]))


def _gain(engine: Engine, feeds: Mapping[str, Array], least_db: float, known: float | None) -> float | None:
    """How many times as fast a batch is when it is compiled for, which it stays if that is enough.

    None where the engine has nothing to offer. What is `known` is not measured.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    general = _filled(engine, feeds)
    answers = {name: array.copy() for name, array in general.run().items()}
    kept = False
    try:
        if not engine.specialise(shapes):
            return None
        special = _filled(engine, feeds)
        found = special.run()
        same = all(alike(array, found[name], array, least_db) for name, array in answers.items())
        gain = (known or _ratio(general, special)) if same else 0.0
        kept = gain >= LEAST_GAIN
        if kept:
            engine.release(special)
        return gain
    finally:
        if not kept:
            engine.generalise(shapes)
            engine.release(general)


def _ratio(general: Slot, special: Slot) -> float:
    general_ms, special_ms = slots_ms([general, special], budget_s=_MEASURED_S)
    return general_ms / special_ms


def _filled(engine: Engine, feeds: Mapping[str, Array]) -> Slot:
    slot = engine.slot({name: array.shape for name, array in feeds.items()})
    for name, buffer in slot.inputs.items():
        np.copyto(buffer, feeds[name], casting="no")
    return slot


def worth_running(sizes: Sequence[int], gains: Mapping[int, float]) -> tuple[int, ...]:
    """Those of `sizes`, rising, that run no longer than padded to the next size that was compiled by itself.

    Between two of those, the time with free dimensions is taken to rise evenly with the rows.
    """
    special = sorted(gains)

    def padded_is_faster(size: int) -> bool:
        above = next((other for other in special if other > size), None)
        # With free dimensions a batch of `above` takes `gain` times as long as it does now.
        return above is not None and size / above * gains[above] > 1.0

    return tuple(size for size in sizes if size in gains or not padded_is_faster(size))
