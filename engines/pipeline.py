"""The one path from an upload to a proven engine, phase by phase.

    validate -> prepare -> calibrate -> quantize -> compile -> verify

A phase reads and writes files of a workspace and returns a small JSON summary; it can be run again, and in
another process than the ones before it. Each leaves a record of its seconds and its summary.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engines import resources
from engines.errors import CalibrationError, CompileError, EngineRunError, UnsupportedModelError
from engines.fidelity.accuracy import check_metric
from engines.model.model import Model, save_model
from engines.model.uploaded import load_uploaded
from engines.options import BuildOptions, Precision
from engines.phases.arriving import arrive, arrived_as, arrived_splits, write_arrived
from engines.phases.batch_rewriting import Rewriting, rewrite_batch
from engines.phases.calibrating import calibrate as observe_variants
from engines.phases.preparing import prepare as prepare_model
from engines.phases.quantizing import quantize as write_quantized
from engines.phases.verifying import verify as verify_engines
from engines.preparation.single_precision import is_bfloat16
from engines.quantization.quantizers import check_form, is_quantized
from engines.runtimes.reference import ReferenceSession
from engines.runtimes.selection import runtime_for
from engines.runtimes.tensorrt.profiles import ShapeLimits, shape_ranges
from engines.samples.importing import SampleSet, SampleView, import_samples
from engines.samples.labels import class_output, read_labels
from engines.workspace import (
    ARRIVED,
    CALIBRATION,
    CHOICES,
    COMPILED,
    HISTOGRAMS,
    LAYER_ERRORS,
    PHASE_RECORDS,
    PREPARED,
    PREPARED_WEIGHTS,
    PROOF,
    QUANTIZED,
    QUANTIZED_WEIGHTS,
    REPORT,
    SAMPLES,
    UPLOADED_LABELS,
    UPLOADED_SAMPLES,
    VALIDATED,
    VARIANTS,
    Workspace,
)

Progress = Callable[[float], None]
"""Takes the share of a phase that is done, 0 to 1."""
Run = Callable[[Workspace, BuildOptions, Progress], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step of a build."""

    name: str
    run: Run
    # Workspace names, or prefixes that end in `/`, of the files that it writes; some builds need fewer.
    outputs: tuple[str, ...]


def validate(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Checks the model, the samples, the options against the model, and that FP32 runs on the samples.

    Raises:
        InvalidModelError, UnsupportedModelError: the model.
        InvalidSamplesError: the samples, or their labels.
        InvalidOptionsError: the contract or the profile does not fit the model, or the runtime this machine.
        CalibrationError: the model fails on the samples.
    """
    model = load_uploaded(workspace)
    check_metric(options.contract.metric, model.outputs)
    runtime_for(options)
    shape_ranges(model.inputs, ShapeLimits(profile=options.profile))
    if options.precision is not Precision.FP32:
        check_form(model.proto.graph)
    progress(0.2)
    files = [workspace.root / name for name in workspace.list(UPLOADED_SAMPLES)]
    samples = import_samples(files, model.inputs, workspace.root / SAMPLES)
    progress(0.8)
    labels = workspace.path(UPLOADED_LABELS)
    labelled = read_labels(labels, samples.rows, class_output(model.outputs)) if labels.exists() else None
    splits = arrived_splits(samples) if is_quantized(model.proto.graph) else samples.split()
    _run_once(model, splits.verify)
    summary = {
        "inputs": [spec.describe() for spec in model.inputs],
        "outputs": [spec.describe() for spec in model.outputs],
        "opset": model.opset,
        "rows": samples.rows,
        "labelled": labelled is not None,
        "calibrate_rows": splits.calibrate.rows,
        "tune_rows": splits.tune.rows,
        "verify_rows": splits.verify.rows,
    }
    _write(workspace, VALIDATED, summary)
    progress(1.0)
    return summary


def _run_once(model: Model, samples: SampleView) -> None:
    """Runs a row, and two where the batch is free: a graph may fix inside what its inputs leave free."""
    try:
        session = ReferenceSession(model.proto, threads=resources.current().threads)
    except CompileError as error:
        if is_bfloat16(model.proto):
            raise UnsupportedModelError(
                "the model computes in bfloat16, in which onnxruntime, the reference, cannot run it on this processor: "
                "export it in float16 or float32."
            ) from error
        raise UnsupportedModelError(f"{error} Export the model with other operators or types.") from error
    for rows in (model.fixed_rows,) if model.fixed_rows else (1, 2):
        feeds = next(iter(samples.batches(rows, whole=True)))
        try:
            session.run(feeds)
        except EngineRunError as error:
            if rows == 2:
                raise UnsupportedModelError(
                    f"the model's batch is free, but it runs with 1 row and not with 2 ({error}) Export it with a "
                    "batch that is free throughout, or fixed to 1 at its inputs."
                ) from error
            raise CalibrationError(
                f"the model does not run on the first sample: {error} Check the samples."
            ) from error


def prepare(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Writes the FP32 model as it is observed, quantized and, where 8 bits may not, served.

    Raises:
        UnsupportedModelError: the model cannot be brought to an opset that has quantization, or arrived with
            quantizers that octet does not take.
        InvalidOptionsError: the model arrived quantized in another precision than the one that is asked for.
    """
    uploaded = load_uploaded(workspace)
    prepared, arrived = arrive(workspace, options, uploaded, prepare_model(uploaded))
    progress(0.5)
    if arrived_as(workspace) is None:
        rows = SampleSet.open(workspace.root / SAMPLES).split().calibrate
        rewriting = rewrite_batch(prepared, rows, runtime_for(options), threads=resources.current().threads)
    else:
        fixed = prepared.fixed_rows is not None
        rewriting = Rewriting(model=prepared, reason="it arrived quantized" if fixed else None)
    save_model(rewriting.model, workspace.path(PREPARED))
    progress(1.0)
    return {
        "prepared_opset": rewriting.model.opset,
        "prepared_nodes": len(rewriting.model.proto.graph.node),
        "uploaded_batch_rows": prepared.fixed_rows,
        "batch_stays_fixed": rewriting.reason,
        **arrived,
    }


def calibrate(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Watches FP32 run on the calibration rows: `engines.phases.calibrating`.

    Raises:
        CalibrationError: the model fails on the samples, or a tensor is not finite.
    """
    if options.precision is Precision.FP32:
        return {"calibration": _skipped(options)}
    if (arrived := arrived_as(workspace)) is not None:
        progress(1.0)
        return {"calibration": f"skipped: {arrived.describe()}"}
    summary = observe_variants(workspace, options, runtime_for(options), progress)
    progress(1.0)
    return summary


def quantize(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Writes the 8-bit model that comes closest to FP32 on the tune rows: `engines.phases.quantizing`.

    Raises:
        UnsupportedModelError: the model's opset has no quantization.
        CalibrationError: the model fails on the samples.
    """
    if options.precision is Precision.FP32:
        return {"quantization": _skipped(options)}
    if (arrived := arrived_as(workspace)) is not None:
        return write_arrived(workspace, arrived, runtime_for(options), progress)
    return write_quantized(workspace, options, runtime_for(options), progress)


def compile_engine(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Compiles what may serve, into the cache of engines where there is one.

    An 8-bit model that cannot be compiled is no failure of the build: verify will have FP32 serve.

    Raises:
        CompileError: the FP32 model cannot be compiled.
    """
    runtime, given = runtime_for(options), resources.current()
    seconds: dict[str, float] = {}
    problem = None
    for done, name in enumerate((PREPARED, QUANTIZED)):
        if not workspace.path(name).exists():
            continue
        start_s = time.perf_counter()

        def tell(share: float, done: int = done) -> None:
            progress((done + share) / 2)

        try:
            runtime.compile(
                workspace.path(name), threads=given.threads, cache=given.cache, progress=tell
            ).close()
        except CompileError as error:
            if name == PREPARED:
                raise
            problem = str(error)
        seconds[name] = round(time.perf_counter() - start_s, 3)
        progress((done + 1) / 2)
    record = {
        "runtime": runtime.name,
        "hardware_key": runtime.hardware_key(),
        "weight_bits": runtime.weight_bits(),
        "compile_s": seconds,
        "problem": problem,
    }
    _write(workspace, COMPILED, record)
    return {"hardware_key": record["hardware_key"], "compile_s": seconds}


def verify(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
    """Seals the proof, has the compiled engines replay it, and writes the report.

    Raises:
        CalibrationError: FP32 itself answers NaN, or fails on the verify rows.
        EngineRefusedError: not even the FP32 engine answers like FP32.
    """
    report = verify_engines(workspace, options, runtime_for(options), progress)
    report.save(workspace.path(REPORT))
    progress(1.0)
    return report.summary()


def recorded(name: str, run: Run) -> Run:
    """`run`, leaving a record of its seconds and its summary."""

    def timed(workspace: Workspace, options: BuildOptions, progress: Progress) -> dict[str, Any]:
        start_s = time.perf_counter()
        summary = run(workspace, options, progress)
        seconds = round(time.perf_counter() - start_s, 3)
        _write(workspace, f"{PHASE_RECORDS}{name}.json", {"seconds": seconds, "summary": summary})
        return summary

    return timed


def _phase(name: str, run: Run, *outputs: str) -> Phase:
    return Phase(name=name, run=recorded(name, run), outputs=(*outputs, f"{PHASE_RECORDS}{name}.json"))


PHASES: tuple[Phase, ...] = (
    _phase("validate", validate, VALIDATED, SAMPLES),
    _phase("prepare", prepare, PREPARED, PREPARED_WEIGHTS, ARRIVED),
    _phase("calibrate", calibrate, VARIANTS),
    _phase(
        "quantize", quantize, QUANTIZED, QUANTIZED_WEIGHTS, CALIBRATION, HISTOGRAMS, CHOICES, LAYER_ERRORS
    ),
    _phase("compile", compile_engine, COMPILED),
    _phase("verify", verify, PROOF, REPORT),
)
"""All phases of a build, in order."""


def _skipped(options: BuildOptions) -> str:
    return f"skipped: the build asks for {options.precision.value}"


def _write(workspace: Workspace, name: str, content: dict[str, Any]) -> None:
    workspace.path(name).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
