"""Measures 8-bit models on the tune samples: what is compared are compiled engines, not simulations."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from engines.errors import CompileError, EngineRunError
from engines.fidelity.accuracy import BEST_DB, Accuracy, Comparison
from engines.model.external_weights import file_bytes
from engines.model.model import Model, save_model
from engines.options import Metric
from engines.proof.batches import ProofBatch
from engines.runtimes.base import Runtime
from engines.runtimes.reference import ReferenceSession
from engines.samples.importing import SampleView

MAX_TUNE_ROWS = 256
"""More rows would change a choice between candidates only where it does not matter."""
TUNE_BATCH_ROWS = 16
MAX_TUNE_BYTES = 256 << 20
"""What the tune samples and FP32's answers may take. Batches beyond are left out; the first one is always there."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A compiled model on the tune samples."""

    # None where the runtime cannot run it.
    accuracy: Accuracy | None
    # Median time of a batch of the tune samples; None where the runtime cannot run it.
    batch_ms: float | None
    # Of the ONNX file, and of its weights where they lie beside it.
    size_bytes: int
    # Time of compiling and running it, or of finding that it cannot run.
    wall_s: float

    @property
    def sqnr_db(self) -> float:
        """SQNR of the worst output, in decibels; of a model that cannot run, the least there is.

        Outputs that are zero throughout have none, so they do not count beside others.
        """
        if self.accuracy is None:
            return -BEST_DB
        speaking = tuple(output for output in self.accuracy.outputs if not output.silent)
        return Accuracy(outputs=speaking or self.accuracy.outputs).value(Metric.SQNR_DB)


class Tuner:
    """Compiles models and compares them with FP32 on the tune samples."""

    def __init__(self, reference: Model, samples: SampleView, *, runtime: Runtime, threads: int) -> None:
        """Runs FP32 once over the samples and keeps its answers."""
        self._runtime = runtime
        self._threads = threads
        session = ReferenceSession(reference.proto, threads=threads)
        self._batches: list[ProofBatch] = []
        size = reference.fixed_rows or _rows_of_a_batch(session, samples)
        rows, left_bytes = 0, MAX_TUNE_BYTES
        batches = samples.batches(size, whole=reference.fixed_rows is not None)
        for feeds, real_rows in zip(batches, samples.batch_rows(size), strict=True):
            batch = ProofBatch(inputs=feeds, outputs=session.run(feeds), rows=real_rows)
            rows += real_rows
            left_bytes -= _bytes(batch)
            if self._batches and left_bytes < 0:
                break
            self._batches.append(batch)
            if rows >= MAX_TUNE_ROWS:
                break

    def measure(self, model: Model) -> Measured:
        """Compiles a model and runs it over the tune samples."""
        comparison = Comparison()
        times_s = []
        begin_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            save_model(model, path)
            size_bytes = file_bytes(path)
            try:
                with self._runtime.compile(path, threads=self._threads) as engine:
                    for batch in self._batches:
                        start_s = time.perf_counter()
                        answers = engine.run(batch.inputs)
                        times_s.append(time.perf_counter() - start_s)
                        comparison.add(batch.counted(batch.outputs), batch.counted(answers))
                accuracy, batch_ms = comparison.result(), round(statistics.median(times_s) * 1e3, 3)
            except (CompileError, EngineRunError):
                accuracy, batch_ms = None, None
        wall_s = time.perf_counter() - begin_s
        return Measured(accuracy=accuracy, batch_ms=batch_ms, size_bytes=size_bytes, wall_s=wall_s)


def _rows_of_a_batch(session: ReferenceSession, samples: SampleView) -> int:
    """As many as leave room for four batches, by the size of the first row and of its answers."""
    feeds = next(iter(samples.batches(1)))
    row = ProofBatch(inputs=feeds, outputs=session.run(feeds), rows=1)
    return max(1, min(TUNE_BATCH_ROWS, MAX_TUNE_BYTES // (4 * _bytes(row))))


def _bytes(batch: ProofBatch) -> int:
    return sum(array.nbytes for array in (*batch.inputs.values(), *batch.outputs.values()))
