"""The last phase of a build: the proof is sealed, the compiled engines replay it, the report is written."""

import json
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines import resources
from engines.arriving import arrived_as, arrived_splits
from engines.batched_reference import BatchedReference, Reference
from engines.choices import Layers, QuantizationRecord
from engines.contract import doubts
from engines.errors import EngineRefusedError
from engines.labels import answered_right, class_output, read_labels, task_report
from engines.latency import latencies_ms, repeated
from engines.loading import Trial, fallback, fp32_engine, no_engine, try_engine
from engines.options import BuildOptions, Contract, Precision
from engines.outcome import outcome
from engines.preparation.single_precision import is_half
from engines.proof import Proof, Verification
from engines.quantization.arrived import Arrived
from engines.report import (
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
from engines.report_details import LatencyReport, LayerErrors, speed_warnings
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.reference import ReferenceSession
from engines.samples import SampleSet, Splits
from engines.uploaded import load_uploaded
from engines.workspace import (
    CALIBRATION,
    CHOICES,
    LAYER_ERRORS,
    PHASE_RECORDS,
    PREPARED,
    PREPARED_WEIGHTS,
    PROOF,
    QUANTIZED,
    QUANTIZED_WEIGHTS,
    SAMPLES,
    UPLOADED_LABELS,
    UPLOADED_MODEL,
    UPLOADED_WEIGHTS,
    Workspace,
)
from engines.worst_tensors import read_histograms, worst_histograms


def verify(
    workspace: Workspace, options: BuildOptions, runtime: Runtime, progress: Callable[[float], None]
) -> Report:
    """Proves the engines that this machine compiles from the workspace's models.

    Writes the proof. The verify rows are used here alone; the FP32 engine is proven in any case, because it
    serves wherever the 8-bit one may not.

    Raises:
        CalibrationError: FP32 itself answers NaN, or fails on the verify rows.
        EngineRefusedError: not even the FP32 engine answers like FP32; of a model that arrived quantized, no engine
            keeps the contract.
        ContractMissedError: the 8-bit engine may not serve, and the options ask to fail then.
        CompileError: the FP32 model cannot be compiled.
    """
    start_s = time.perf_counter()
    given = resources.current()
    arrived = arrived_as(workspace)
    samples = SampleSet.open(workspace.root / SAMPLES)
    splits = arrived_splits(samples) if arrived else samples.split()
    proof = _sealed(workspace, splits, options.contract, arrived=arrived is not None)
    progress(0.3)
    with ExitStack() as stack:
        fp32, verification = fp32_engine(
            runtime, workspace.root, proof, threads=given.threads, cache=given.cache
        )
        stack.enter_context(fp32)
        progress(0.5)
        trial = None
        if QUANTIZED in proof.hashes:
            trial = try_engine(
                runtime,
                workspace.path(QUANTIZED),
                proof,
                options.precision,
                threads=given.threads,
                cache=given.cache,
            )
            if trial.engine is not None:
                stack.enter_context(trial.engine)
        progress(0.8)
        latencies = _latencies(proof, options, fp32, trial)
        task = _task(workspace, splits, proof, trial)
    end = outcome(options, trial, fallback=fallback(proof))
    if end.serving is Precision.FP32 and not verification.holds:
        raise EngineRefusedError(no_engine(trial.verification if trial else None, verification))
    if end.contract is not None:
        replace(proof, contract=end.contract).save(workspace.path(PROOF))
    record = _record(workspace, options)
    eight_bit = trial is not None and end.serving is not Precision.FP32
    unbatchable = (trial.verification if trial and eight_bit else verification).unbatchable
    thresholds = _thresholds(workspace)
    emulated = trial is not None and runtime.emulates(options.precision)
    return Report(
        verdict=end.verdict,
        reason=end.reason,
        requested=options.precision,
        serving=end.serving,
        contract=options.contract,
        fp32=_engine_report(verification),
        quantized=_engine_report(trial.verification) if trial else None,
        evidence=_evidence(splits, proof, trial),
        task=task,
        batching=_batching(workspace, unbatchable),
        sizes=_sizes(workspace),
        layers=record.layers,
        choices=record.choices,
        thresholds=thresholds,
        latencies=latencies,
        emulated=emulated,
        hardware=_hardware(runtime, given.threads),
        versions=versions(),
        arrived=_arrived(arrived, verification if trial else None) if arrived else None,
        phases=_phases(workspace) | {"verify": round(time.perf_counter() - start_s, 3)},
        warnings=speed_warnings(latencies, emulated=emulated, arrived=arrived is not None),
        layer_errors=_layer_errors(workspace),
        histograms=worst_histograms(
            read_histograms(workspace),
            {name: entry.threshold for name, entry in thresholds.items()},
            options.precision,
        ),
    )


def _sealed(workspace: Workspace, splits: Splits, contract: Contract, *, arrived: bool) -> Proof:
    """The proof of what is in the workspace, also written there."""
    reference, half = _reference(workspace)
    names = (PREPARED, PREPARED_WEIGHTS, QUANTIZED, QUANTIZED_WEIGHTS)
    artifact = {name: path for name in names if (path := workspace.path(name)).exists()}
    proof = Proof.seal(reference, splits.verify, contract, artifact, arrived=arrived, half=half)
    proof.save(workspace.path(PROOF))
    return proof


def _reference(workspace: Workspace) -> tuple[Reference, bool]:
    """The uploaded model, of a free batch where preparation made it free, and whether it is in 16-bit floats."""
    uploaded = load_uploaded(workspace)
    reference: Reference = ReferenceSession(uploaded.proto, threads=resources.current().threads)
    if uploaded.fixed_rows is not None and _batching(workspace, None).rewritten:
        reference = BatchedReference(reference, uploaded.fixed_rows)
    return reference, is_half(uploaded.proto)


def _record(workspace: Workspace, options: BuildOptions) -> QuantizationRecord:
    if options.precision is Precision.FP32:
        return QuantizationRecord(choices=None, layers=Layers())
    return QuantizationRecord.load(workspace.path(CHOICES))


def _latencies(
    proof: Proof, options: BuildOptions, fp32: Engine, trial: Trial | None
) -> tuple[LatencyReport, ...]:
    """One row, and the largest batch that will be run."""
    batch = proof.batches[0]
    sizes = {1, options.batching.max_batch_rows} if proof.free_rows else {batch.size}
    ran = trial is not None and trial.engine is not None and trial.verification.accuracy is not None
    engines = [fp32, trial.engine] if ran and trial and trial.engine else [fp32]
    found = []
    for rows in sorted(sizes):
        times_ms = latencies_ms(engines, repeated(batch.inputs, rows))
        quantized_ms = times_ms[1] if len(times_ms) > 1 else None
        found.append(LatencyReport(rows=rows, fp32_ms=times_ms[0], quantized_ms=quantized_ms))
    return tuple(found)


def _engine_report(verification: Verification) -> EngineReport:
    return EngineReport(
        holds=verification.holds,
        miss=verification.miss,
        value=verification.value,
        outputs=output_reports(verification.accuracy),
        clauses=clause_reports(verification.clauses),
    )


def _evidence(splits: Splits, proof: Proof, trial: Trial | None) -> Evidence:
    rows = splits.verify.rows
    accuracy = trial.verification.accuracy if trial else None
    uncertain = doubts(accuracy, proof.contract) if accuracy else ()
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


def _task(workspace: Workspace, splits: Splits, proof: Proof, trial: Trial | None) -> TaskReport | None:
    """Accuracies on the labelled rows of the proof, where there are labels."""
    path = workspace.path(UPLOADED_LABELS)
    if not path.exists():
        return None
    output = class_output(load_uploaded(workspace).outputs)
    labels = read_labels(path, SampleSet.open(workspace.root / SAMPLES).rows, output)
    right = answered_right(proof, splits.verify, labels, output)
    engine = trial.engine if trial and trial.verification.accuracy else None
    return task_report(
        output.name,
        right,
        answered_right(proof, splits.verify, labels, output, engine) if engine else None,
    )


def _batching(workspace: Workspace, unbatchable: str | None) -> Batching:
    prepared = json.loads(workspace.path(f"{PHASE_RECORDS}prepare.json").read_bytes())["summary"]
    fixed, stays = prepared["uploaded_batch_rows"], prepared["batch_stays_fixed"]
    return Batching(
        batchable=unbatchable is None,
        reason=unbatchable,
        uploaded_rows=fixed,
        rewritten=fixed is not None and stays is None,
        stays_fixed=stays,
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
