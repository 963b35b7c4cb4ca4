"""One batch: how its rows are written into an engine's buffers, and which outputs are whose."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engines.runtimes.base import Engine, Slot
from engines.tensors import Array
from service.batch_sizes import BatchRules
from service.queue import Part
from service.timeline import EngineRun


@dataclass(kw_only=True, slots=True)
class Batch:
    """Parts on their way through the engine. Times are those of `time.perf_counter`."""

    parts: list[Part]
    slot: Slot
    # Whether others still waited when it was formed.
    left_others: bool
    # Filled in by the engine's thread.
    started_s: float = 0.0
    ended_s: float = 0.0
    outputs: dict[str, Array] | None = None
    error: Exception | None = None

    @property
    def rows(self) -> int:
        """Rows of callers; what pads the batch is not counted."""
        return sum(part.rows for part in self.parts)


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
    slot = engine.slot({name: (size, *array.shape[1:]) for name, array in feeds.items()})
    for name, target in slot.inputs.items():
        np.concatenate([part.rows_of(name) for part in parts], out=target[:rows], casting="no")
        if size > rows:
            target[rows:] = target[rows - 1]
    return slot


def shares(
    rules: BatchRules, parts: list[Part], outputs: dict[str, Array]
) -> Iterator[tuple[Part, dict[str, Array]]]:
    """Each part with its own rows of a batch's outputs."""
    row = 0
    for part in parts:
        if rules.batchable:
            yield part, {name: array[row : row + part.rows] for name, array in outputs.items()}
        else:
            yield part, outputs
        row += part.rows


def note_run(batch: Batch) -> None:
    """Tells the timelines of a batch, where it has any, when it ran."""
    watched = [part.request.timeline for part in batch.parts if part.request.timeline is not None]
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
