"""The phase that writes the 8-bit model: candidates are compiled and compared with FP32 on the tune samples.

In order of cost: the FP32 model as prepared or with its channels evened out, clipping thresholds of several kinds,
weights rounded to the nearest or fitted to the samples, and last, where the contract is missed, layers left floating.
Each is kept only where the tune samples say that it helps; the verify samples are not touched.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engines import resources
from engines.calibrating import packed, read_observed, tries_attention
from engines.calibration.thresholds import chosen
from engines.choices import CandidateReport, Choices, Layers, MixedReport, QuantizationRecord, Variant
from engines.errors import CalibrationError, CompileError, EngineRunError
from engines.layer_errors import layer_errors
from engines.mixing import keeps, mix
from engines.model import save_model
from engines.options import BuildOptions, CalibrationMethod, Effort, OnMiss, Precision
from engines.plan import Plan
from engines.prepare import load_prepared
from engines.runtimes.base import Runtime
from engines.samples import SampleSet, Splits
from engines.tuning import Measured, Tuner
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

_TRIED = (CalibrationMethod.AUTO, CalibrationMethod.ENTROPY, CalibrationMethod.MSE)
"""Kinds of thresholds between which the tune samples decide where the build leaves it to octet. AUTO is first, and
stays where others are no better."""
_WORTH_DB = 0.2
"""What another kind of threshold has to win: tune samples are few, and smaller differences are chance."""
_EVENED_WORTH_DB = 1.0
"""What evened channels have to win where something had to be added for them: it costs time at every request."""
_ATTENTION_LOSS_DB = 0.5
"""What the products of queries and keys may cost in 8 bits: they make attention faster (MiniLM by 8%)."""
_CANDIDATES_SHARE = 0.7
"""Of the phase's time; the rest is for mixed precision."""


@dataclass(frozen=True, kw_only=True)
class _Tried:
    plan: Plan
    measured: Measured


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
    observed = read_observed(workspace)
    plans = [
        Plan.of(each, method, precision=options.precision, runtime=runtime)
        for each in observed
        for method in _methods(options)
    ]
    if not plans[0].placement.weights:
        layers = Layers.of(plans[0].placement)
        QuantizationRecord(choices=None, layers=layers).save(workspace.path(CHOICES))
        return {"quantization": "skipped: no layer of the model can run in 8 bits", **_counts(layers)}
    splits = SampleSet.open(workspace.root / SAMPLES).split()
    try:
        prepared = load_prepared(workspace.path(PREPARED))
        tuner = Tuner(prepared, splits.tune, runtime=runtime, threads=resources.current().threads)
        tried = _try(plans, tuner, splits, options, lambda done: progress(_CANDIDATES_SHARE * done))
        best = max(range(len(tried)), key=lambda number: _rank(tried[number], options))
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
    choices, layers = _choices(tried, best, mixed), Layers.of(plan.placement)
    QuantizationRecord(choices=choices, layers=layers).save(workspace.path(CHOICES))
    progress(1.0)
    bits = runtime.weight_bits() if options.precision is Precision.INT8 else 8
    return {"weight_bits": bits, **_summary(choices), **_counts(layers)}


def read_thresholds(workspace: Workspace) -> dict[str, float]:
    """The thresholds of the 8-bit model."""
    table = json.loads(workspace.path(CALIBRATION).read_bytes())["tensors"]
    return {name: float(entry["threshold"]) for name, entry in table.items()}


def _methods(options: BuildOptions) -> Sequence[CalibrationMethod]:
    asked = options.calibration
    one_is_enough = options.effort is Effort.FAST or options.precision is Precision.FP8
    return (asked,) if asked is not CalibrationMethod.AUTO or one_is_enough else _TRIED


def _try(
    plans: Sequence[Plan],
    tuner: Tuner,
    splits: Splits,
    options: BuildOptions,
    progress: Callable[[float], None],
) -> list[_Tried]:
    """Measures every plan with rounded weights, the best of each variant with fitted ones, then 8-bit attention."""
    variants = len({plan.observed.variant for plan in plans})
    fits = {Effort.FAST: 0, Effort.STANDARD: variants, Effort.THOROUGH: len(plans)}[options.effort]
    # Fitting takes about as long as measuring three models.
    steps = len(plans) + 4 * fits + 1
    tried: list[_Tried] = []

    def measure(plan: Plan) -> None:
        tried.append(_Tried(plan=plan, measured=tuner.measure(plan.write())))

    for number, plan in enumerate(plans):
        measure(plan)
        progress((number + 1) / steps)
    for number, unfitted in enumerate(_worth_fitting(tried, fits)):
        plan = unfitted.fitted(splits.calibrate)
        if plan.weights:
            measure(plan)
        progress((len(plans) + 4 * (number + 1)) / steps)
    best = max(tried, key=lambda each: _rank(each, options)).plan
    attention = best.with_attention()
    if tries_attention(options) and attention.placement != best.placement:
        measure(attention)
    return tried


def _worth_fitting(tried: Sequence[_Tried], count: int) -> list[Plan]:
    """The best plan of every variant, then the best of the others; `count` of them."""
    ranked = [each.plan for each in sorted(tried, key=_worth_db, reverse=True)]
    first = {plan.observed.variant: plan for plan in reversed(ranked)}.values()
    return [*first, *(plan for plan in ranked if all(plan is not other for other in first))][:count]


def _rank(tried: _Tried, options: BuildOptions) -> tuple[bool, float]:
    """What keeps the contract comes before what would need floating layers for that; the first of equals is chosen."""
    return keeps(tried.measured, options.contract), _worth_db(tried)


def _worth_db(tried: _Tried) -> float:
    """SQNR less what the plan has to win over a simpler one, or may lose against a slower one."""
    plan = tried.plan
    price = 0.0 if plan.method is CalibrationMethod.AUTO else _WORTH_DB
    if plan.observed.variant is Variant.EVENED:
        price += _EVENED_WORTH_DB if plan.observed.added_nodes else _WORTH_DB
    if plan.attention:
        price -= _ATTENTION_LOSS_DB
    return tried.measured.sqnr_db - price


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


def _choices(tried: Sequence[_Tried], best: int, mixed: MixedReport | None) -> Choices:
    return Choices(
        candidates=tuple(
            CandidateReport(
                variant=each.plan.observed.variant,
                calibration=each.plan.method,
                fitted=bool(each.plan.weights),
                attention=each.plan.attention,
                sqnr_db=None if each.measured.accuracy is None else round(each.measured.sqnr_db, 2),
                batch_ms=each.measured.batch_ms,
                size_bytes=each.measured.size_bytes,
            )
            for each in tried
        ),
        chosen=best,
        mixed=mixed,
    )


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
