"""Runs models on OpenVINO side by side; runs inside the peers' environment.

Reads {"models": {name: path}, "samples", "outputs": folder, "batch_rows", "rounds"} as JSON from standard
input; the first model is the one that the others are compared with. Writes each model's first output over all
samples to outputs/NUMBER.npy and answers {name: {"outputs", "rows_per_s", "speedup", "layers",
"layers_8bit"}}, or {name: {"error"}} for a model that OpenVINO does not run.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino

# What multiplies: the layers that 8 bits are for.
_HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"}
# Each model's share of a round.
_SLICE_S = 0.3


class Contestant:
    """One compiled model."""

    def __init__(self, path: str) -> None:
        # Left alone, a processor with bf16 would run what stays in floating point in that.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = openvino.Core().compile_model(path, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        # Rows per second in each round.
        self.rates: list[float] = []

    def run(self, feeds: dict[str, Any]) -> Any:
        return self.request.infer(feeds, share_inputs=True)[self.compiled.output(0)]

    def outputs(self, samples: dict[str, Any], rows: int) -> Any:
        return np.concatenate([self.run(feeds).copy() for feeds in _cut(samples, rows)])

    def time(self, feeds: dict[str, Any], rows: int) -> None:
        """One slice of a round."""
        start = time.perf_counter()
        count = 0
        while (spent_s := time.perf_counter() - start) < _SLICE_S or not count:
            self.run(feeds)
            count += 1
        self.rates.append(count * rows / spent_s)

    def precisions(self) -> list[str]:
        """The number format that each heavy layer really runs in."""
        found = []
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            if "layerType" in facts and facts["layerType"].astype(str) in _HEAVY:
                found.append(facts["runtimePrecision"].astype(str))
        return found


def _cut(samples: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    count = len(next(iter(samples.values())))
    return [
        {name: np.ascontiguousarray(values[start : start + rows]) for name, values in samples.items()}
        for start in range(0, count, rows)
    ]


def main() -> None:
    """Does the one job on standard input."""
    job = json.load(sys.stdin)
    rows = job["batch_rows"]
    with np.load(job["samples"]) as archive:
        samples = dict(archive)
    answers: dict[str, dict[str, Any]] = {}
    field: dict[str, Contestant] = {}
    for number, (name, path) in enumerate(job["models"].items()):
        file = Path(job["outputs"]) / f"{number}.npy"
        try:
            contestant = Contestant(path)
            np.save(file, contestant.outputs(samples, rows))
        except Exception as error:  # noqa: BLE001  # whatever a tool's file makes OpenVINO raise is that tool's row
            answers[name] = {"error": str(error).strip().splitlines()[-1]}
            continue
        precisions = contestant.precisions()
        eight = sum(precision in {"i8", "u8"} for precision in precisions)
        answers[name] = {"outputs": str(file), "layers": len(precisions), "layers_8bit": eight}
        field[name] = contestant
    feeds = _cut(samples, rows)[0]
    for _ in range(job["rounds"]):
        for contestant in field.values():
            contestant.time(feeds, rows)
    first = next(iter(field.values()))
    for name, contestant in field.items():
        ratios = [rate / base for rate, base in zip(contestant.rates, first.rates, strict=True)]
        answers[name]["rows_per_s"] = statistics.median(contestant.rates)
        answers[name]["speedup"] = statistics.median(ratios)
    print(f"\n{json.dumps(answers)}")


if __name__ == "__main__":
    main()
