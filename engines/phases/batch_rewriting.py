"""A model that came with a fixed batch gets a free one where that is proven.

A traced graph answers one row at a time and cannot be batched, which costs most of a server's throughput. The
candidate with a free batch is kept only if onnxruntime and the engine both answer its rows in company of every kind
(`engines.proof.company`) as the model of the fixed batch does in its own batches. Calibration rows are enough: the
sealed proof replays the uploaded model's answers on rows that nothing was chosen on.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import CompileError, EngineRunError, UnsupportedModelError
from engines.fidelity.accuracy import Comparison
from engines.model.model import Model, save_model
from engines.model.tensors import Array
from engines.phases.batched_reference import BatchedReference
from engines.phases.preparing import prepare_free_batch
from engines.preparation.single_precision import is_half
from engines.proof.company import FP32_DB, HALF_DB, TRIAL_ROWS, influence
from engines.proof.proof import fp32_miss
from engines.runtimes.base import Runtime
from engines.runtimes.reference import ReferenceSession
from engines.samples.sample_set import SampleView

_Answered = tuple[Mapping[str, Array], Mapping[str, Array]]

_TRIALS = 2
"""Batches of different shapes that the proof is tried on, where inputs have free dimensions."""


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """What became of a fixed batch."""

    # The prepared model, its batch free where that is proven.
    model: Model
    # Why the batch stays as it was; None where it is free.
    reason: str | None


def rewrite_batch(prepared: Model, samples: SampleView, runtime: Runtime, *, threads: int) -> Rewriting:
    """Frees the batch of a prepared model, if the proof holds.

    Args:
        prepared: a model after preparation, with shapes inferred; of a free batch it is handed back.
        samples: rows to try; not those of the sealed proof.
        runtime: what will serve.
        threads: processors to use.
    """
    rows = prepared.fixed_rows
    if rows is None:
        return Rewriting(model=prepared, reason=None)
    try:
        candidate = prepare_free_batch(prepared)
    except UnsupportedModelError as error:
        return Rewriting(model=prepared, reason=str(error).rstrip("."))
    try:
        tried = _answered(prepared, rows, samples, threads)
        reason = _why_not(candidate, tried, runtime, threads)
    except (CompileError, EngineRunError) as error:
        reason = f"with a free batch the model fails: {str(error).rstrip('.')}"
    return Rewriting(model=prepared if reason else candidate, reason=reason)


def _why_not(candidate: Model, tried: Sequence[_Answered], runtime: Runtime, threads: int) -> str | None:
    # One session or engine after the other, because each holds the weights.
    if not tried:
        return "there are no two samples of one shape to try in one batch"
    least_db = HALF_DB if is_half(candidate.proto) else FP32_DB
    reason = _reference_differs(candidate, tried, least_db, threads)
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        save_model(candidate, path)
        with runtime.compile(path, threads=threads) as engine:
            for feeds, right in tried:
                answers = engine.run(feeds)
                comparison = Comparison()
                comparison.add(right, answers)
                reason = fp32_miss(comparison.result()) or influence(
                    engine.run, feeds, answers, least_db=least_db, free_rows=True
                )
                if reason:
                    return reason
    return None


def _answered(model: Model, rows: int, samples: SampleView, threads: int) -> list[_Answered]:
    """Batches of two rows and more, with the answers of a model that takes `rows` at a time."""
    reference = BatchedReference(ReferenceSession(model.proto, threads=threads), rows)
    return [(feeds, reference.run(feeds)) for feeds in itertools.islice(_companies(samples), _TRIALS)]


def _reference_differs(
    candidate: Model, tried: Sequence[_Answered], least_db: float, threads: int
) -> str | None:
    # The same library on the same numbers: nothing but the order of sums may differ.
    session = ReferenceSession(candidate.proto, threads=threads)
    reasons = (
        influence(session.run, feeds, right, least_db=least_db, free_rows=True) for feeds, right in tried
    )
    return next((reason for reason in reasons if reason), None)


def _companies(samples: SampleView) -> Iterator[dict[str, Array]]:
    """Batches of two rows and more."""
    for feeds in samples.batches(TRIAL_ROWS):
        if len(next(iter(feeds.values()))) > 1:
            yield feeds
