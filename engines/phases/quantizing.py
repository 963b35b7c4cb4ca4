"""The phase that writes the 8-bit model: candidates are compiled and compared with FP32 on the tune samples.

In order of cost: the FP32 model as prepared or with its channels evened out, clipping thresholds of several kinds,
weights rounded to the nearest or fitted to the samples, and last, where the contract is missed, layers left floating.
Each is kept only where the tune samples say that it helps; the verify samples are not touched.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any

from engines import resources
from engines.calibration.thresholds import chosen
from engines.errors import CalibrationError, CompileError, EngineRunError
from engines.model.model import save_model
from engines.options import BuildOptions, OnMiss, Precision
from engines.phases.calibrating import packed, read_observed
from engines.phases.preparing import load_prepared
from engines.reports.layer_errors import layer_errors
from engines.runtimes.base import Runtime
from engines.samples.importing import SampleSet, Splits
from engines.search.candidates import first_plans, try_candidates
from engines.search.choices import Choices, Layers, QuantizationRecord
from engines.search.mixing import keeps, mix
from engines.search.plan import Plan
from engines.search.tuning import Tuner
from engines.workspace import (
    CALIBRATION,
    CHOICES,
    HISTOGRAMS,
    LAYER_ERRORS,
    PREPARED,
    QUANTIZED,
    QUANTIZED_WEIGHTS,
    SAMPLES,
    Workspace,
)

_CANDIDATES_SHARE = 0.7
"""Of the phase's time; the rest is for mixed precision."""


def quantize(
    workspace: Workspace, options: BuildOptions, runtime: Runtime, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Writes the 8-bit model, its thresholds and what it was chosen from.

    Raises:
        UnsupportedModelError: the model's opset has no quantization.
        CalibrationError: the model fails on the samples.
    """
    for name in (QUANTIZED, QUANTIZED_WEIGHTS, CALIBRATION, HISTOGRAMS, CHOICES, LAYER_ERRORS):
        workspace.path(name).unlink(missing_ok=True)
    plans = first_plans(read_observed(workspace), options, runtime)
    if not plans[0].placement.weights:
        layers = Layers.of(plans[0].placement)
        QuantizationRecord(choices=None, layers=layers).save(workspace.path(CHOICES))
        return {"quantization": "skipped: no layer of the model can run in 8 bits", **_counts(layers)}
    splits = SampleSet.open(workspace.root / SAMPLES).split()
    try:
        prepared = load_prepared(workspace.path(PREPARED))
        tuner = Tuner(prepared, splits.tune, runtime=runtime, threads=resources.current().threads)
        tried = try_candidates(
            plans,
            tuner,
            splits.calibrate if splits.disjoint else None,
            options,
            lambda done: progress(_CANDIDATES_SHARE * done),
        )
        best = max(range(len(tried)), key=lambda number: tried[number].rank(options))
        plan, mixed = tried[best].plan, None
        if options.on_miss is OnMiss.MIX and not keeps(tried[best].measured, options.contract):
            plan, mixed = mix(
                plan,
                tried[best].measured,
                tuner,
                options.contract,
                options.effort,
                progress=lambda done: progress(_CANDIDATES_SHARE + (1 - _CANDIDATES_SHARE) * done),
            )
    except EngineRunError as error:
        raise CalibrationError(
            f"the FP32 model does not run on the samples: {error} Check the model with them."
        ) from error
    _write(workspace, plan, splits)
    choices = Choices(candidates=tuple(each.report() for each in tried), chosen=best, mixed=mixed)
    layers = Layers.of(plan.placement)
    QuantizationRecord(choices=choices, layers=layers).save(workspace.path(CHOICES))
    progress(1.0)
    bits = runtime.weight_bits() if options.precision is Precision.INT8 else 8
    return {"weight_bits": bits, **_summary(choices), **_counts(layers)}


def _write(workspace: Workspace, plan: Plan, splits: Splits) -> None:
    quantized = plan.write()
    save_model(quantized, workspace.path(QUANTIZED))
    # For the report alone: a model that cannot be observed is no reason to fail.
    with contextlib.suppress(CompileError, EngineRunError):
        errors = layer_errors(
            plan.observed.model, quantized, splits.tune, threads=resources.current().threads
        )
        workspace.path(LAYER_ERRORS).write_text(errors.model_dump_json(indent=1), encoding="utf-8")
    used = [activation.tensor for activation in plan.placement.activations]
    histograms = {name: plan.observed.histograms[name] for name in used}
    workspace.path(HISTOGRAMS).write_bytes(packed(histograms))
    table = {
        name: {
            "threshold": plan.thresholds[name],
            "absmax": histogram.absmax,
            "method": chosen(histogram, plan.method, plan.precision).value,
        }
        for name, histogram in histograms.items()
    }
    content = {"method": plan.method.value, "rows": splits.calibrate.rows, "tensors": table}
    workspace.path(CALIBRATION).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def _summary(choices: Choices) -> dict[str, Any]:
    won = choices.candidates[choices.chosen]
    return {
        "variant": won.variant.value,
        "calibration": won.calibration.value,
        "fitted_weights": won.fitted,
        "attention": won.attention,
        "tune_sqnr_db": won.sqnr_db,
        "left_floating": len(choices.mixed.left_floating) if choices.mixed else 0,
    }


def _counts(layers: Layers) -> dict[str, Any]:
    return {"layers_quantized": len(layers.quantized), "layers_skipped": len(layers.skipped)}
