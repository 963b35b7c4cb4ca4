"""`python -m examples.qat`: two models that arrive quantized to three bits, one of them trained for it.

Both are the same network on the same grid, 7 levels of weights and 8 of activations, in symmetric INT8 Q/DQ ONNX as
PyTorch exports it (scripts/train_qat.py made them). This starts octet in an empty folder and uploads both; octet
recognises, checks, compiles and proves them without calibration. Then the 600 digits kept aside go to each.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from examples.demo import free_port
from examples.running import StartError, ended_by_signals, service
from examples.uploading import UploadError, build, checked

DIGITS = Path(__file__).parent / "digits"
TRAINING_ROWS = 1197
MODELS = {
    "ptq-3-bits": "rounded after training (PTQ)",
    "qat-3-bits": "trained with its quantizers (QAT)",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one upload."""

    # The version's report, as JSON.
    report: dict[str, Any]
    # Share of right answers of the engine that serves.
    accuracy: float


def main() -> int:
    """Uploads both and compares them; returns the exit status."""
    console = Console()
    try:
        with (
            ended_by_signals(),
            tempfile.TemporaryDirectory(prefix="octet-qat-") as home,
            service(Path(home), port=free_port()) as octet,
            httpx.Client(base_url=octet.address, timeout=60.0) as client,
        ):
            results = {name: uploaded(client, name) for name in MODELS}
    except KeyboardInterrupt:
        console.print("interrupted; octet was stopped")
        return 130
    except (UploadError, StartError, httpx.HTTPError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    console.print(comparison(results))
    return 0


def uploaded(client: httpx.Client, name: str) -> Result:
    """Uploads one of `MODELS` and has the version that serves classify the digits kept aside."""
    build(client, name, DIGITS / f"{name}.onnx", DIGITS / "samples.npz", {}, told=_nobody)
    with np.load(DIGITS / "digits.npz") as digits:
        images = digits["images"][TRAINING_ROWS:].astype(np.float32)
        labels = digits["labels"][TRAINING_ROWS:]
    tensor = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.ravel().tolist(),
    }
    answer = checked(client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}))
    scores = np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
    return Result(
        report=checked(client.get(f"/v1/models/{name}/versions/1/report")),
        accuracy=float((scores.argmax(axis=1) == labels).mean()),
    )


def comparison(results: dict[str, Result]) -> Table:
    """A row for each model."""
    table = Table(title="3-bit weights and activations, arrived in Q/DQ ONNX from PyTorch")
    for heading in ("model", "top-1", "serves", "engine to upload, dB", "without rounding, dB"):
        table.add_column(heading, justify="left" if heading in ("model", "serves") else "right")
    for name, result in results.items():
        report = result.report
        table.add_row(
            MODELS[name],
            f"{result.accuracy:.2%}",
            report["serving"],
            f"{report['quantized']['outputs'][0]['sqnr_db']:.1f}",
            f"{report['arrived']['without_pairs'][0]['sqnr_db']:.1f}",
        )
    return table


def _nobody(_phase: str, _done: float) -> None:
    """Two uploads of seconds need no progress bar."""


if __name__ == "__main__":
    sys.exit(main())
