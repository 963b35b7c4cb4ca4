"""The last phase of a build: the proof is sealed, the compiled engines replay it, the report is written."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from engines import resources
from engines.errors import EngineRefusedError
from engines.loading import Trial, fallback, fp32_engine, no_engine, try_engine
from engines.model.uploaded import load_uploaded
from engines.options import BuildOptions, Contract, Precision
from engines.phases.arriving import arrived_as, arrived_splits
from engines.phases.batched_reference import BatchedReference, Reference
from engines.preparation.single_precision import is_half
from engines.proof.outcome import outcome
from engines.proof.proof import Proof
from engines.reports.details import LatencyReport
from engines.reports.latency import latencies_ms, repeated
from engines.reports.report import (
    Report,
    TaskReport,
)
from engines.reports.reporting import Proven, batching, compose_report
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.reference import ReferenceSession
from engines.samples.importing import SampleSet, Splits
from engines.samples.labels import answered_right, class_output, read_labels, task_report
from engines.workspace import (
    PREPARED,
    PREPARED_WEIGHTS,
    PROOF,
    QUANTIZED,
    QUANTIZED_WEIGHTS,
    SAMPLES,
    UPLOADED_LABELS,
    Workspace,
)


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
    proven = _prove(workspace, options, runtime, progress)
    end = outcome(options, proven.trial, fallback=fallback(proven.proof))
    if end.serving is Precision.FP32 and not proven.fp32.holds:
        raise EngineRefusedError(no_engine(proven.trial.verification if proven.trial else None, proven.fp32))
    if end.contract is not None:
        replace(proven.proof, contract=end.contract).save(workspace.path(PROOF))
    return compose_report(workspace, options, runtime, proven, end, start_s=start_s)


def _prove(
    workspace: Workspace, options: BuildOptions, runtime: Runtime, progress: Callable[[float], None]
) -> Proven:
    """Seals the proof and has every engine replay it; engines are closed again."""
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
        return Proven(
            arrived=arrived,
            splits=splits,
            proof=proof,
            fp32=verification,
            trial=trial,
            latencies=_latencies(proof, options, fp32, trial),
            task=_task(workspace, splits, proof, trial),
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
    if uploaded.fixed_rows is not None and batching(workspace, None).rewritten:
        reference = BatchedReference(reference, uploaded.fixed_rows)
    return reference, is_half(uploaded.proto)


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
