"""Puts the report together from what the phases left in the workspace and what was proven."""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import resources
from engines.fidelity.contract import doubts
from engines.loading import Trial
from engines.options import BuildOptions, Precision
from engines.proof.outcome import Outcome
from engines.proof.padding import NO_LENGTH, Padding
from engines.proof.proof import Proof, Verification
from engines.quantization.arrived import Arrived
from engines.reports.details import EngineLayersReport, LatencyReport, LayerErrors, speed_warnings
from engines.reports.report import (
    ArrivedReport,
    Batching,
    EngineReport,
    Evidence,
    Hardware,
    Report,
    Sizes,
    TaskReport,
    ThresholdReport,
    clause_reports,
    output_reports,
    versions,
    weak_evidence,
)
from engines.reports.worst_tensors import read_histograms, worst_histograms
from engines.runtimes.base import Runtime
from engines.samples.importing import Splits
from engines.search.choices import Layers, QuantizationRecord
from engines.workspace import (
    CALIBRATION,
    CHOICES,
    LAYER_ERRORS,
    PHASE_RECORDS,
    PREPARED,
    QUANTIZED,
    UPLOADED_MODEL,
    UPLOADED_WEIGHTS,
    Workspace,
)


@dataclass(frozen=True, kw_only=True)
class Proven:
    """What came of the proof; its engines are closed."""

    # None of a model that octet quantized itself.
    arrived: Arrived | None
    splits: Splits
    proof: Proof
    # Of the FP32 engine, or of the one without rounding.
    fp32: Verification
    # Of the 8-bit engine; None where there is none.
    trial: Trial | None
    latencies: tuple[LatencyReport, ...]
    # None where there are no labels.
    task: TaskReport | None


def compose_report(
    workspace: Workspace,
    options: BuildOptions,
    runtime: Runtime,
    proven: Proven,
    end: Outcome,
    *,
    start_s: float,
) -> Report:
    """The report of a build that ended so; its last phase began at `start_s` on the performance counter."""
    record = _record(workspace, options)
    trial, arrived = proven.trial, proven.arrived
    eight_bit = trial is not None and end.serving is not Precision.FP32
    serving = trial.verification if trial and eight_bit else proven.fp32
    thresholds = _thresholds(workspace)
    emulated = trial is not None and runtime.emulates(options.precision)
    return Report(
        verdict=end.verdict,
        reason=end.reason,
        requested=options.precision,
        serving=end.serving,
        contract=options.contract,
        fp32=_engine_report(proven.fp32),
        quantized=_engine_report(trial.verification) if trial else None,
        evidence=_evidence(proven),
        task=proven.task,
        batching=_lengths(batching(workspace, serving.unbatchable), proven.proof, serving),
        sizes=_sizes(workspace),
        layers=record.layers,
        choices=record.choices,
        thresholds=thresholds,
        latencies=proven.latencies,
        emulated=emulated,
        hardware=_hardware(runtime, resources.current().threads),
        versions=versions(),
        arrived=_arrived(arrived, proven.fp32 if trial else None) if arrived else None,
        phases=_phases(workspace) | {"verify": round(time.perf_counter() - start_s, 3)},
        warnings=(
            *((runtime.caveat,) if runtime.caveat else ()),
            *speed_warnings(proven.latencies, emulated=emulated, arrived=arrived is not None),
        ),
        engine_layers=_engine_layers(trial),
        layer_errors=_layer_errors(workspace),
        histograms=worst_histograms(
            read_histograms(workspace),
            {name: entry.threshold for name, entry in thresholds.items()},
            options.precision,
        ),
    )


def batching(workspace: Workspace, unbatchable: str | None) -> Batching:
    """What became of the batch of the upload, and why rows may not share one."""
    prepared = json.loads(workspace.path(f"{PHASE_RECORDS}prepare.json").read_bytes())["summary"]
    fixed, stays = prepared["uploaded_batch_rows"], prepared["batch_stays_fixed"]
    return Batching(
        batchable=unbatchable is None,
        reason=unbatchable,
        uploaded_rows=fixed,
        rewritten=fixed is not None and stays is None,
        stays_fixed=stays,
    )


def _lengths(found: Batching, proof: Proof, serving: Verification) -> Batching:
    """Adds what became of rows of different lengths; nothing where the model has none."""
    if isinstance(proof.padding, Padding) and serving.unpadded is None:
        return found.model_copy(update={"mask": proof.padding.mask})
    unpadded = None if proof.padding == NO_LENGTH else serving.unpadded
    return found.model_copy(update={"unpadded": unpadded})


def _record(workspace: Workspace, options: BuildOptions) -> QuantizationRecord:
    if options.precision is Precision.FP32:
        return QuantizationRecord(choices=None, layers=Layers())
    return QuantizationRecord.load(workspace.path(CHOICES))


def _engine_report(verification: Verification) -> EngineReport:
    return EngineReport(
        holds=verification.holds,
        miss=verification.miss,
        value=verification.value,
        outputs=output_reports(verification.accuracy),
        clauses=clause_reports(verification.clauses),
    )


def _engine_layers(trial: Trial | None) -> EngineLayersReport | None:
    layers = trial.engine.layers if trial and trial.engine else None
    if layers is None:
        return None
    return EngineLayersReport(by_type=dict(layers.by_type), eight_bit=layers.eight_bit, alone=layers.alone)


def _evidence(proven: Proven) -> Evidence:
    splits, proof = proven.splits, proven.proof
    rows = splits.verify.rows
    accuracy = proven.trial.verification.accuracy if proven.trial else None
    uncertain = doubts(accuracy, proof.contract) if accuracy else ()
    if proof.rows > 1 and _alike(proof):
        uncertain = ("all its rows are the same, which shows nothing of other inputs", *uncertain)
    return Evidence(
        calibrate_rows=splits.calibrate.rows,
        tune_rows=splits.tune.rows,
        verify_rows=rows,
        proof_rows=proof.rows,
        disjoint=splits.disjoint,
        weak=weak_evidence(
            verify_rows=rows, proof_rows=proof.rows, disjoint=splits.disjoint, doubts=uncertain
        ),
    )


def _alike(proof: Proof) -> bool:
    """Whether no input differs from row to row: zeros, or one example over and over."""
    first = proof.batches[0].inputs
    return all(
        array.shape[1:] == first[name].shape[1:] and bool((array == first[name][:1]).all())
        for batch in proof.batches
        for name, array in batch.inputs.items()
    )


def _sizes(workspace: Workspace) -> Sizes:
    def size_bytes(*prefixes: str) -> int:
        names = {name for prefix in prefixes for name in workspace.list(prefix)}
        return sum(workspace.path(name).stat().st_size for name in names)

    return Sizes(
        uploaded_bytes=size_bytes(UPLOADED_MODEL, UPLOADED_WEIGHTS),
        prepared_bytes=size_bytes(PREPARED),
        quantized_bytes=size_bytes(QUANTIZED) or None,
    )


def _arrived(arrived: Arrived, without_rounding: Verification | None) -> ArrivedReport:
    return ArrivedReport(
        producer=arrived.producer,
        layers=len(arrived.layers),
        floating_layers=len(arrived.floating),
        asymmetric=len(arrived.asymmetric),
        without_pairs=output_reports(without_rounding.accuracy) if without_rounding else (),
    )


def _thresholds(workspace: Workspace) -> dict[str, ThresholdReport]:
    path = workspace.path(CALIBRATION)
    if not path.exists():
        return {}
    table = json.loads(path.read_bytes())["tensors"]
    return {name: ThresholdReport.model_validate(entry) for name, entry in table.items()}


def _layer_errors(workspace: Workspace) -> LayerErrors | None:
    path = workspace.path(LAYER_ERRORS)
    return LayerErrors.model_validate_json(path.read_bytes()) if path.exists() else None


def _hardware(runtime: Runtime, threads: int) -> Hardware:
    return Hardware(
        runtime=runtime.name,
        key=runtime.hardware_key(),
        weight_bits=runtime.weight_bits(),
        threads=threads,
        processor=_processor(),
    )


def _processor() -> str:
    """The processor's name as it tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _phases(workspace: Workspace) -> dict[str, float]:
    def seconds(name: str) -> float:
        record: dict[str, Any] = json.loads(workspace.path(name).read_bytes())
        return float(record["seconds"])

    return {Path(name).stem: seconds(name) for name in workspace.list(PHASE_RECORDS)}
