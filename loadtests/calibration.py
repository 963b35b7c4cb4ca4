"""What calibration costs, beside a plain forward pass and beside onnxruntime's own calibrator, in one run.

`python -m loadtests.calibration` calibrates a network of ResNet-50's size by entropy. Each measurement runs
in a process of its own, so that its peak memory is its own. octet's goes from the uploaded samples to the
thresholds; only the calibration is timed. Its time is that of the calibration alone (effort `fast`); what the
default adds, the search for channels to even out and the calibration of what that gives, has a line of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from engines import pipeline
from engines.calibration.thresholds import threshold
from engines.options import BuildOptions, CalibrationMethod, Effort
from engines.phases.calibrating import read_observed
from engines.samples.importing import SampleSet
from engines.workspace import SAMPLES, UPLOADED_MODEL, UPLOADED_SAMPLES, Workspace
from loadtests.peers.environment import ROOT, PeerEnvironment
from loadtests.peers.settings import Setting
from loadtests.resnet50 import write_resnet50

# Uploaded rows; the calibration split holds about half of them. Memory is compared between the two.
FEW_ROWS, MANY_ROWS = 64, 1024
# onnxruntime keeps every activation of every row, about 120 MB each: it is given few, and the cost of a row
# is the difference between two runs, without what it spends once.
PEER_ROWS = (8, 24)
INPUTS = "inputs"
MODEL = "resnet50.onnx"
FORWARD_BATCH_ROWS = 8
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def images(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[rows, 3, 224, 224] of blurred noise with unit deviation."""
    coarse = np.random.default_rng(8).standard_normal((rows, 3, 56, 56), dtype=np.float32)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


def write_inputs(folder: Path) -> dict[str, Any]:
    """The network and every sample file; in a process of its own because children inherit the peak memory."""
    write_resnet50(folder / MODEL)
    for rows in (FEW_ROWS, MANY_ROWS, *PEER_ROWS):
        np.savez(folder / f"{rows}.npz", image=images(rows))
    return {}


def octet(model: Path, rows: int, effort: Effort) -> dict[str, Any]:
    """Validates and prepares an upload of `rows` rows, then times its calibration, thresholds included."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        workspace = Workspace(Path(folder))
        workspace.path(UPLOADED_MODEL).hardlink_to(model)
        workspace.path(f"{UPLOADED_SAMPLES}0.npz").hardlink_to(model.parent / f"{rows}.npz")
        options = BuildOptions(calibration=CalibrationMethod.ENTROPY, effort=effort)
        pipeline.validate(workspace, options, _ignore)
        pipeline.prepare(workspace, options, _ignore)
        observed = SampleSet.open(workspace.root / SAMPLES).split().calibrate.rows
        start = time.perf_counter()
        pipeline.calibrate(workspace, options, _ignore)
        for seen in read_observed(workspace):
            for histogram in seen.histograms.values():
                threshold(histogram, options.calibration)
        return {"wall_s": time.perf_counter() - start, "rows": observed}


def _ignore(progress: float) -> None:
    """Nobody watches the progress here."""


def in_own_process(kind: str, path: Path, rows: int) -> dict[str, Any]:
    """One measurement and its peak memory."""
    result = subprocess.run(
        [sys.executable, "-m", "loadtests.calibration", "--measure", kind, str(path), str(rows)],
        cwd=ROOT,
        env=os.environ | {"OCTET_THREADS": str(THREADS)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer


def forward(peers: PeerEnvironment, model: Path) -> tuple[float, int]:
    """Seconds and rows of a plain forward pass in onnxruntime, all its optimizations on."""
    job = {
        "model": str(model),
        "samples": str(model.parent / f"{FEW_ROWS}.npz"),
        "batch_rows": FORWARD_BATCH_ROWS,
        "threads": THREADS,
    }
    answer = peers.run("loadtests.peers.forward", job)
    return answer["wall_s"], answer["rows"]


def peer_ms(peers: PeerEnvironment, model: Path) -> float:
    """Milliseconds a row of onnxruntime's `quantize_static` by entropy."""
    spent_s = []
    for rows in PEER_ROWS:
        job = {
            "setting": Setting.ORT_ENTROPY,
            "model": str(model),
            "samples": str(model.parent / f"{rows}.npz"),
            "target": str(model.parent / "peer.onnx"),
        }
        spent_s.append(peers.run("loadtests.peers.with_onnxruntime", job)["wall_s"])
    return float(1000 * (spent_s[1] - spent_s[0]) / (PEER_ROWS[1] - PEER_ROWS[0]))


def compare(folder: Path) -> None:
    """Measures everything and prints the figures with their bars."""
    model = folder / MODEL
    peers = PeerEnvironment(ROOT / ".octet-bench" / "peers")
    if reason := peers.missing.get("onnxruntime"):
        sys.exit(
            f"onnxruntime could not be installed ({reason}); without it there is nothing to compare with."
        )
    in_own_process(INPUTS, folder, 0)
    passes = [forward(peers, model)]
    alone = in_own_process(Effort.FAST, model, MANY_ROWS)
    few = in_own_process(Effort.STANDARD, model, FEW_ROWS)
    many = in_own_process(Effort.STANDARD, model, MANY_ROWS)
    passes.append(forward(peers, model))
    theirs_ms = peer_ms(peers, model)
    forward_ms = 1000 * sum(wall_s for wall_s, _ in passes) / sum(rows for _, rows in passes)
    ours_ms, default_ms = (1000 * run["wall_s"] / run["rows"] for run in (alone, many))
    print(f"plain FP32 forward      {forward_ms:8.1f} ms a sample")
    print(f"octet, entropy          {ours_ms:8.1f} ms a sample over {alone['rows']} samples")
    print(f"  against the forward   {ours_ms / forward_ms:8.2f} times (bar: at most 2)")
    print(f"  with evened channels  {default_ms:8.1f} ms a sample")
    print(f"onnxruntime, entropy    {theirs_ms:8.1f} ms a sample")
    print(f"  against octet         {theirs_ms / ours_ms:8.1f} times (bar: at least 10)")
    for run in (few, many):
        print(f"octet's peak memory     {run['peak_bytes'] / 1e6:8.0f} MB with {run['rows']} samples")
    growth_mb = (many["peak_bytes"] - few["peak_bytes"]) / 1e6
    print(f"  growth                {growth_mb:8.0f} MB (bar: at most 300)")


def main() -> None:
    """Runs the comparison, or, in a child, one measurement."""
    parser = argparse.ArgumentParser(description="Measures calibration.")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "PATH", "ROWS"), help=argparse.SUPPRESS)
    if (asked := parser.parse_args().measure) is None:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder))
        return
    kind, path, rows = asked
    answer = write_inputs(Path(path)) if kind == INPUTS else octet(Path(path), int(rows), Effort(kind))
    # Kilobytes on Linux, bytes on macOS.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
