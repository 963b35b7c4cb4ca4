"""Whether the rows of a batch influence each other.

A batcher may put rows of different requests into one batch only where each row's answer does not depend on its
company. That is tried rather than read from the graph: the rows of one batch are run again in another order,
next to copies of one of them, in a batch of another size, and alone. A softmax over axis 0, a batch mean that
is subtracted or a normalisation with batch statistics shows.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.fidelity.accuracy import Accuracy, to_db
from engines.model.tensors import Array

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

FP32_DB = 70.0
"""Floating-point sums whose order depends on the batch size differ by less: about 120 dB was seen in CNNs."""
HALF_DB = 50.0
"""In models of 16-bit floats such a difference may round a value the other way, 2^-11 of it or 66 dB below it."""
EIGHT_BIT_DB = 40.0
"""Such a difference may move an activation across a rounding step of 8 bits, once in many thousands."""
_BELOW_NOISE_DB = 6.0
"""And where the rounding steps of an engine are coarse, it may change a quarter of what they do anyway: 42 dB were seen
in an engine of 28 dB whose layers end in normalizations."""
_LEAST_DB = 20.0

TRIAL_ROWS = 8
"""Rows that are enough to be tried, where the batch size is free."""
_ODD_ROWS = 3


def eight_bit_least_db(accuracy: Accuracy) -> float:
    """What `influence` should ask of an 8-bit engine of this accuracy."""
    known = [
        output.sqnr_db for output in accuracy.outputs if output.sqnr_db is not None and not output.silent
    ]
    return min([EIGHT_BIT_DB, *(max(_LEAST_DB, sqnr_db + _BELOW_NOISE_DB) for sqnr_db in known)])


def influence(
    run: Run,
    feeds: Mapping[str, Array],
    together: Mapping[str, Array],
    *,
    least_db: float,
    free_rows: bool,
) -> str | None:
    """Why rows may not share a batch, or None where they were not seen to influence each other.

    Args:
        run: runs one batch.
        feeds: at least two rows.
        together: the outputs for them, perhaps in the company of more rows.
        least_db: energy of a row's answer, in decibels, above the energy of what its company may change.
        free_rows: whether batches of other sizes may be run.

    Raises:
        EngineRunError: the model fails on one of the batches.
    """
    rows = len(next(iter(feeds.values())))
    odd = next((name for name, array in together.items() if len(array) != rows), None)
    if odd is not None:
        return f"output {odd!r} has {len(together[odd])} rows for {rows} rows of input"
    for how, numbers in _trials(rows, free_rows=free_rows):
        answers = run({name: np.ascontiguousarray(array[numbers]) for name, array in feeds.items()})
        for name, array in together.items():
            if len(answers[name]) != len(numbers):
                return f"output {name!r} has {len(answers[name])} rows for {len(numbers)} rows of input"
            if not alike(array[numbers], answers[name], array, least_db):
                return f"a row's {name!r} changes when its batch is {how}"
    return None


def _trials(rows: int, *, free_rows: bool) -> Iterator[tuple[str, NDArray[np.int64]]]:
    order = np.arange(rows)
    yield "shuffled", order[::-1]
    for chosen in (0, rows - 1):
        yield "filled with copies of that row", np.full(rows, chosen)
        crowd = np.full(rows, rows - 1 - chosen)
        crowd[rows // 2] = chosen
        yield "filled with copies of another row", crowd
    if free_rows:
        yield "of another size", np.roll(order, 1)[: min(_ODD_ROWS, rows - 1)]
        for row in order[:TRIAL_ROWS]:
            yield "that row alone", np.array([row])


def alike(before: Array, after: Array, typical: Array, least_db: float) -> bool:
    """Whether two answers to the same rows are the same up to rounding: equal, or floats within `least_db`."""
    if not np.issubdtype(before.dtype, np.floating):
        return bool(np.array_equal(before, after))
    first, second = (array.reshape(len(array), -1).astype(np.float64) for array in (before, after))
    same_anyway = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        noise = np.where(same_anyway, 0.0, first - second)
    if not np.isfinite(noise).all():
        return False
    # Against the mean row, so that a row of tiny values is not held to more digits than its neighbours.
    values = typical.astype(np.float64)
    signal = float(np.square(values, where=np.isfinite(values), out=np.zeros_like(values)).sum()) / len(
        values
    )
    return all(to_db(signal, float(energy)) >= least_db for energy in np.square(noise).sum(axis=1))
