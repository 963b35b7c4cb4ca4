"""The phase that watches FP32 run on the calibration rows; thresholds are chosen later, from what it saw."""

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines import resources
from engines.calibration.histogram import Histogram
from engines.calibration.magnitudes import observe_magnitudes
from engines.calibration.observer import BATCH_ROWS, observe
from engines.errors import CalibrationError, EngineRunError
from engines.formats import WeightBits
from engines.model.model import Model, save_model
from engines.model.tensors import Array
from engines.options import BuildOptions, Effort, Precision, Rest
from engines.phases.preparing import load_prepared
from engines.quantization.placement import place, tensors
from engines.runtimes.base import Runtime
from engines.samples.importing import SampleSet, SampleView, Splits
from engines.search.choices import Variant
from engines.search.variants import evened
from engines.workspace import PREPARED, SAMPLES, VARIANTS, Workspace

_EVENING_SHARE = 0.4
"""Of the phase's time."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One variant of the model, and the histogram of every tensor that may be quantized."""

    variant: Variant
    model: Model
    histograms: Mapping[str, Histogram]
    # How many nodes it has beyond those of the prepared model.
    added_nodes: int
    # The largest magnitude of every floating tensor, where the engine computes its rest in 16-bit floats.
    magnitudes: Mapping[str, float] = field(default_factory=dict)


def calibrate(
    workspace: Workspace, options: BuildOptions, runtime: Runtime, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Observes every variant of the prepared model, and writes what it saw.

    Raises:
        CalibrationError: the model fails on the samples, or a tensor is not finite.
    """
    for stale in workspace.list(VARIANTS):
        workspace.path(stale).unlink()
    model = load_prepared(workspace.path(PREPARED))
    splits = SampleSet.open(workspace.root / SAMPLES).split()
    rows = splits.calibrate
    try:
        models = _variants(model, splits, options, runtime, lambda done: progress(_EVENING_SHARE * done))
        share = (1 - _EVENING_SHARE) / len(models)
        for number, (variant, each) in enumerate(models.items()):
            told = functools.partial(_tell, progress, _EVENING_SHARE + number * share, share)
            histograms = _histograms(each, rows, options, told)
            if variant is not Variant.PREPARED:
                save_model(each, workspace.path(_model(variant)))
            workspace.path(_seen(variant)).write_bytes(packed(histograms))
            if options.rest is Rest.FP16 and runtime.halves_rest:
                content = json.dumps(_magnitudes(each, rows), allow_nan=False)
                workspace.path(_magnitudes_of(variant)).write_text(content, encoding="utf-8")
    except EngineRunError as error:
        raise CalibrationError(
            f"the FP32 model does not run on the samples: {error} Check the model with them."
        ) from error
    return {
        "calibration_rows": rows.rows,
        "calibrated_tensors": len(histograms),
        "variants": [variant.value for variant in models],
    }


def tries_attention(options: BuildOptions) -> bool:
    """Whether the products of queries and keys may be quantized: FP8 has rules of its own for attention."""
    return options.precision is Precision.INT8 and options.effort is not Effort.FAST


def read_observed(workspace: Workspace) -> list[Observed]:
    """What calibration saw, the model as it was prepared first."""
    prepared = load_prepared(workspace.path(PREPARED))
    found = []
    for variant in Variant:
        if not workspace.path(_seen(variant)).exists():
            continue
        rewritten = variant is not Variant.PREPARED
        model = load_prepared(workspace.path(_model(variant))) if rewritten else prepared
        magnitudes = workspace.path(_magnitudes_of(variant))
        found.append(
            Observed(
                variant=variant,
                model=model,
                histograms=unpacked(workspace.path(_seen(variant)).read_bytes()),
                added_nodes=len(model.proto.graph.node) - len(prepared.proto.graph.node),
                magnitudes=json.loads(magnitudes.read_bytes()) if magnitudes.exists() else {},
            )
        )
    return found


def packed(histograms: Mapping[str, Histogram]) -> bytes:
    """Histograms as a compressed .npz: the tensors' names in `names`, then `{number}.{field}`."""
    arrays = {
        f"{number}.{field}": array
        for number, histogram in enumerate(histograms.values())
        for field, array in histogram.to_arrays().items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, names=np.array(list(histograms), np.str_), **arrays)
    return buffer.getvalue()


def unpacked(content: bytes) -> dict[str, Histogram]:
    """What `packed` packed."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        fields: dict[str, dict[str, Array]] = {}
        for key in arrays.files:
            number, _, field = key.partition(".")
            fields.setdefault(number, {})[field] = arrays[key]
        names = fields.pop("names")[""]
    return {str(name): Histogram.from_arrays(fields[str(number)]) for number, name in enumerate(names)}


def _variants(
    model: Model,
    splits: Splits,
    options: BuildOptions,
    runtime: Runtime,
    progress: Callable[[float], None],
) -> dict[Variant, Model]:
    found = {Variant.PREPARED: model}
    # The steps of E4M3 grow with the values: channels of unlike magnitudes cost it nothing. And what is evened out for
    # rows that also judge it looks good on them, and on nothing else.
    if options.effort is not Effort.FAST and options.precision is Precision.INT8 and splits.disjoint:
        bits, rows = WeightBits(runtime.weight_bits()), splits.calibrate
        other = evened(model, rows, bits=bits, threads=resources.current().threads, progress=progress)
        if other is not model:
            found[Variant.EVENED] = other
    return found


def _histograms(
    model: Model, rows: SampleView, options: BuildOptions, progress: Callable[[float], None]
) -> dict[str, Histogram]:
    # Of every placement that may be tried: with attention in 8 bits other residuals may be the better ones.
    placements = [
        place(model, precision=options.precision, attention=attention)
        for attention in sorted({False, tries_attention(options)})
    ]
    names = list(dict.fromkeys(name for placement in placements for name in tensors(placement)))
    if not names:
        return {}
    return observe(
        model,
        names,
        _batches(model, rows),
        threads=resources.current().threads,
        progress=lambda seen: progress(min(1.0, seen / rows.rows)),
    )


def _magnitudes(model: Model, rows: SampleView) -> dict[str, float]:
    return observe_magnitudes(model, _batches(model, rows), threads=resources.current().threads)


def _batches(model: Model, rows: SampleView) -> Iterator[Mapping[str, Array]]:
    return rows.batches(model.fixed_rows or BATCH_ROWS, whole=model.fixed_rows is not None)


def _tell(progress: Callable[[float], None], start: float, share: float, done: float) -> None:
    progress(start + share * done)


def _model(variant: Variant) -> str:
    return f"{VARIANTS}{variant.value}.onnx"


def _seen(variant: Variant) -> str:
    return f"{VARIANTS}{variant.value}.npz"


def _magnitudes_of(variant: Variant) -> str:
    return f"{VARIANTS}{variant.value}.magnitudes.json"
