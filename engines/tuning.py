"""Measures 8-bit models on the tune samples: what is compared are compiled engines, not simulations."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.accuracy import BEST_DB, Accuracy, Comparison
from engines.errors import CompileError, EngineRunError
from engines.external_weights import file_bytes
from engines.model import Model, save_model
from engines.options import Metric
from engines.runtimes.base import Runtime
from engines.runtimes.reference import ReferenceSession
from engines.samples import SampleView
from engines.tensors import Array

MAX_TUNE_ROWS = 256
"""More rows would change a choice between candidates only where it does not matter."""
TUNE_BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A compiled model on the tune samples."""

    # None where the runtime cannot run it.
    accuracy: Accuracy | None
    # Median time of a batch of the tune samples; None where the runtime cannot run it.
    batch_ms: float | None
    # Of the ONNX file, and of its weights where they lie beside it.
    size_bytes: int

    @property
    def sqnr_db(self) -> float:
        """SQNR of the worst output, in decibels; of a model that cannot run, the least there is."""
        return -BEST_DB if self.accuracy is None else self.accuracy.value(Metric.SQNR_DB)


class Tuner:
    """Compiles models and compares them with FP32 on the tune samples."""

    def __init__(self, reference: Model, samples: SampleView, *, runtime: Runtime, threads: int) -> None:
        """Runs FP32 once over the samples and keeps its answers."""
        self._runtime = runtime
        self._threads = threads
        session = ReferenceSession(reference.proto, threads=threads)
        self._batches: list[tuple[Mapping[str, Array], Mapping[str, Array]]] = []
        rows = 0
        size = reference.fixed_rows or TUNE_BATCH_ROWS
        for feeds in samples.batches(size, whole=reference.fixed_rows is not None):
            self._batches.append((feeds, session.run(feeds)))
            rows += size
            if rows >= MAX_TUNE_ROWS:
                break

    def measure(self, model: Model) -> Measured:
        """Compiles a model and runs it over the tune samples."""
        comparison = Comparison()
        times_s = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            save_model(model, path)
            size_bytes = file_bytes(path)
            try:
                with self._runtime.compile(path, threads=self._threads) as engine:
                    for feeds, right in self._batches:
                        start_s = time.perf_counter()
                        answers = engine.run(feeds)
                        times_s.append(time.perf_counter() - start_s)
                        comparison.add(right, answers)
            except (CompileError, EngineRunError):
                return Measured(accuracy=None, batch_ms=None, size_bytes=size_bytes)
        batch_ms = round(statistics.median(times_s) * 1e3, 3)
        return Measured(accuracy=comparison.result(), batch_ms=batch_ms, size_bytes=size_bytes)
