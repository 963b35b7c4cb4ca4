"""The phase that writes the 8-bit model: weights rounded to the nearest code, or fitted to the samples.

Fitted weights are better nearly always and a little better at least; where samples are few or unlike what comes,
the tune samples say so, and the plain ones are kept.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engines import resources
from engines.calibration.moments import observe_moments
from engines.calibration.observer import BATCH_ROWS
from engines.model import Model
from engines.options import Precision
from engines.quantization.placement import Placement
from engines.quantization.qdq import quantize_model
from engines.quantization.reconstruction import LayerWeights, reconstruct, reconstructible
from engines.quantization.scheme import scheme_of
from engines.runtimes.base import Runtime
from engines.samples import SampleView, Splits
from engines.tuning import Candidate, Choice, Tuner
from engines.workspace import CALIBRATION, Workspace

NEAREST = "weights rounded to the nearest"
FITTED = "weights fitted to the samples"

_FITTING_SHARE = 0.7
"""Of the phase's time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be quantized, and for which engine."""

    # Prepared.
    model: Model
    placement: Placement
    # Clipping threshold of each quantized activation.
    thresholds: Mapping[str, float]
    runtime: Runtime
    # The 8-bit type, which placement and thresholds are for.
    precision: Precision = Precision.INT8

    def write(self, weights: Mapping[str, LayerWeights] | None = None) -> Model:
        """The 8-bit model with these weights, by node; others are rounded to the nearest."""
        return quantize_model(
            self.model,
            self.placement,
            self.thresholds,
            weight_bits=self.runtime.weight_bits(),
            weights=weights,
            precision=self.precision,
        )


def read_thresholds(workspace: Workspace) -> dict[str, float]:
    """The thresholds that calibration chose."""
    table = json.loads(workspace.path(CALIBRATION).read_bytes())["tensors"]
    return {name: float(entry["threshold"]) for name, entry in table.items()}


def choose_weights(plan: Plan, splits: Splits, progress: Callable[[float], None]) -> Choice:
    """The 8-bit model that comes closest to FP32 on the tune samples."""
    tuner = Tuner(plan.model, splits.tune, runtime=plan.runtime, threads=resources.current().threads)
    fitted = _fitted(plan, splits.calibrate, lambda done: progress(_FITTING_SHARE * done))
    candidates = [
        Candidate(name=NEAREST, make=plan.write),
        Candidate(name=FITTED, make=lambda: plan.write(fitted)),
    ]
    return tuner.choose(
        candidates, progress=lambda done: progress(_FITTING_SHARE + (1 - _FITTING_SHARE) * done)
    )


def _fitted(plan: Plan, rows: SampleView, progress: Callable[[float], None]) -> dict[str, LayerWeights]:
    layers = reconstructible(
        plan.model,
        plan.placement,
        plan.thresholds,
        unsigned=plan.runtime.unsigned_activations,
        precision=plan.precision,
    )
    if not layers:
        return {}
    fixed = plan.model.fixed_rows
    size = fixed or BATCH_ROWS
    moments = observe_moments(
        plan.model,
        layers,
        rows.batches(size, whole=fixed is not None),
        batch_count=len(rows.batch_rows(size)),
        threads=resources.current().threads,
        progress=lambda seen: progress(min(1.0, seen / rows.rows)),
    )
    scheme = scheme_of(plan.precision, weight_bits=plan.runtime.weight_bits())
    return reconstruct(plan.model, layers, moments, scheme.weights)
