"""One batch: how its rows are written into an engine's buffers, and which outputs are whose.

A large body is read from the socket into memory of its own, and to write its rows here is their only copy. A batch
has its rows side by side, and whose they are is known only once they are whole: a client that stalls, received straight
into its place, would hold up its batch or leave a hole in it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engines.model.tensors import Array
from engines.proof.padding import Padding
from engines.runtimes.base import Engine, Slot
from service.batching.batch_sizes import BatchRules
from service.batching.queue import Part
from service.monitoring.timeline import EngineRun


@dataclass(kw_only=True, slots=True)
class Batch:
    """Parts on their way through the engine. Times are those of `time.perf_counter`."""

    parts: list[Part]
    slot: Slot
    # Whether others still waited when it was formed, for which it had no room. Of batches that could have been larger
    # nothing is learned about the pace.
    left_others: bool
    # Filled in by `run`.
    started_s: float = 0.0
    ended_s: float = 0.0
    outputs: dict[str, Array] | None = None
    error: Exception | None = None

    @property
    def rows(self) -> int:
        """Rows of callers; what pads the batch is not counted."""
        return sum(part.rows for part in self.parts)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the inputs that the engine gets."""
        return tuple(array.shape for array in self.slot.inputs.values())

    def run(self) -> None:
        """Has the engine compute the outputs; an error of its own belongs to the batch's callers."""
        self.started_s = time.perf_counter()
        try:
            self.outputs = {name: array.copy() for name, array in self.slot.run().items()}
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.error = error
        self.ended_s = time.perf_counter()

    def taken_error(self) -> Exception | None:
        """The error, which is here no more: its traceback refers back here.

        Together they would wait for the garbage collector, and with them the bodies of all callers.
        """
        error, self.error = self.error, None
        return error


def written(engine: Engine, rules: BatchRules, parts: list[Part]) -> Slot:
    """A slot of the engine with the rows of `parts` in it; copies of the last row fill a larger batch size.

    Raises:
        EngineRunError: the shapes do not fit the model.
    """
    feeds = parts[0].request.feeds
    if not rules.batchable:
        slot = engine.slot({name: array.shape for name, array in feeds.items()})
        for name, target in slot.inputs.items():
            target[...] = feeds[name]
        return slot
    rows = sum(part.rows for part in parts)
    size = rules.size_for(rows)
    items = dict(zip(feeds, rules.item_shapes(feeds), strict=True))
    slot = engine.slot({name: (size, *shape) for name, shape in items.items()})
    for name, target in slot.inputs.items():
        arrays = [part.rows_of(name) for part in parts]
        if all(array.shape[1:] == items[name] for array in arrays):
            np.concatenate(arrays, out=target[:rows], casting="no")
        else:
            _write_padded(target, arrays)
        if size > rows:
            target[rows:] = target[rows - 1]
    return slot


def _write_padded(target: Array, arrays: list[Array]) -> None:
    """Writes rows one array after the other, each at the start of its place, with zeros behind it."""
    row = 0
    for array in arrays:
        own = target[row : row + len(array)]
        own[...] = 0
        own[tuple(slice(length) for length in array.shape)] = array
        row += len(array)


def shares(
    rules: BatchRules, parts: list[Part], outputs: dict[str, Array]
) -> Iterator[tuple[Part, dict[str, Array]]]:
    """Each part with its own rows of a batch's outputs, without what belongs to padding."""
    row = 0
    for part in parts:
        if not rules.batchable:
            yield part, outputs
            continue
        own = {name: array[row : row + part.rows] for name, array in outputs.items()}
        if rules.padding is not None and rules.padding.outputs:
            own = _cut(rules.padding, part, own)
        yield part, own
        row += part.rows


def _cut(padding: Padding, part: Part, outputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs that are as long as the row, cut to its own length."""
    length = padding.length_of({name: array.shape for name, array in part.request.feeds.items()})
    whole = slice(None)
    return {
        name: np.ascontiguousarray(array[(*(whole,) * axis, slice(length))])
        if (axis := padding.outputs.get(name))
        else array
        for name, array in outputs.items()
    }


def note_run(batch: Batch) -> None:
    """Tells the timelines of a batch, where it has any, when it ran."""
    watched = [timeline for part in batch.parts if (timeline := part.request.caller.timeline) is not None]
    if not watched:
        return
    run = EngineRun(
        started_s=batch.started_s,
        ended_s=batch.ended_s,
        rows=batch.rows,
        requests=len(batch.parts),
        watched=watched,
    )
    for timeline in watched:
        timeline.runs.append(run)
