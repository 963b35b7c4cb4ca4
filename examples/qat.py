"""`python -m examples.qat`: two models that arrive quantized to three bits, one of them trained for it.

Both are the same network on the same grid, 7 levels of weights and 8 of activations, in symmetric INT8 Q/DQ ONNX as
PyTorch exports it (scripts/train_qat.py made them). octet recognises, checks, compiles and proves them without
calibration; this prints what their engines make of the 600 digits kept aside.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from engines import Report, load_engine, quantize
from engines.errors import EngineError
from engines.options import BuildOptions

DIGITS = Path(__file__).parent / "digits"
TRAINING_ROWS = 1197
THREADS = 2
MODELS = {
    "ptq-3-bits.onnx": "rounded after training (PTQ)",
    "qat-3-bits.onnx": "trained with its quantizers (QAT)",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one upload."""

    report: Report
    # Share of right answers of the engine that serves.
    accuracy: float


def main() -> int:
    """Builds both and compares them; returns the exit status."""
    console = Console()
    try:
        results = {name: build(DIGITS / name) for name in MODELS}
    except EngineError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    console.print(comparison(results))
    return 0


def build(model: Path) -> Result:
    """Builds a version of `model` and has its engine classify the digits kept aside."""
    with np.load(DIGITS / "digits.npz") as digits:
        images = digits["images"][TRAINING_ROWS:].astype(np.float32)
        labels = digits["labels"][TRAINING_ROWS:]
    options = BuildOptions()
    with tempfile.TemporaryDirectory(prefix="octet-qat-") as folder:
        report = quantize(model, [DIGITS / "samples.npz"], Path(folder), options, threads=THREADS)
        loaded = load_engine(Path(folder), options, threads=THREADS)
        with loaded.engine as engine:
            scores = np.asarray(engine.run({"image": images})["scores"], np.float32)
    return Result(report=report, accuracy=float((scores.argmax(axis=1) == labels).mean()))


def comparison(results: dict[str, Result]) -> Table:
    """A row for each model."""
    table = Table(title="3-bit weights and activations, arrived in Q/DQ ONNX from PyTorch")
    for heading in ("model", "top-1", "serves", "engine to upload, dB", "without rounding, dB"):
        table.add_column(heading, justify="left" if heading in ("model", "serves") else "right")
    for name, result in results.items():
        report = result.report
        engine = report.quantized.outputs[0].sqnr_db if report.quantized else None
        without = report.arrived.without_pairs[0].sqnr_db if report.arrived else None
        table.add_row(
            MODELS[name],
            f"{result.accuracy:.2%}",
            report.serving.value,
            "" if engine is None else f"{engine:.1f}",
            "" if without is None else f"{without:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
