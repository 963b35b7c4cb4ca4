"""Builds of models that arrive quantized: nothing is calibrated, the quantizers stay as they came.

The reference of the proof is onnxruntime on the upload itself, because its weights were trained, or fitted, for its
quantizers. What compiles and serves is the same graph, prepared. The graph without rounding takes the place that
FP32 has in other builds: it may serve where the 8-bit engine may not, but only if it keeps the contract against
the quantized graph, and its distance is reported.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from engines import resources
from engines.errors import InvalidOptionsError, UnsupportedModelError
from engines.model.model import Model, from_proto, save_model
from engines.model.naming import quote
from engines.model.uploaded import load_uploaded
from engines.options import BuildOptions, Precision
from engines.phases.preparing import prepare
from engines.quantization.arrived import Arrived, describe_arrived, producer
from engines.quantization.narrowing import WIDEST_SAFE_CODE, narrow_weights, widest_code
from engines.quantization.pairs import fold_constant_codes, without_pairs
from engines.quantization.quantizers import is_quantized, read_quantizers
from engines.quantization.symmetric import make_symmetric
from engines.quantization.unsigned import keep_quantizers
from engines.runtimes.base import Runtime
from engines.samples.importing import SampleSet, SampleView, Splits
from engines.search.choices import Layers, QuantizationRecord, SkippedLayerReport
from engines.search.tuning import Tuner
from engines.workspace import ARRIVED, CHOICES, QUANTIZED, SAMPLES, Workspace

FLOATING = "it arrived floating"
AS_IT_ARRIVED = "weights as they arrived"
NARROWED = "weights rounded to 7 bits"


def arrive(
    workspace: Workspace, options: BuildOptions, uploaded: Model, prepared: Model
) -> tuple[Model, dict[str, Any]]:
    """Describes a quantized upload in the workspace; returns what may serve where 8 bits may not, and a summary.

    Of a model that is not quantized, that is `prepared`. Of a quantized one it is the graph without rounding; with
    the precision fp32 it is the graph as it came.

    Raises:
        UnsupportedModelError: a quantizer cannot be compiled as it is meant.
        InvalidOptionsError: another precision is asked for than the one it arrived in.
    """
    workspace.path(ARRIVED).unlink(missing_ok=True)
    if not is_quantized(prepared.proto.graph):
        return prepared, {}
    if options.precision is Precision.FP32:
        arrived = _described(uploaded, prepared)
        floating = _marked(prepared.proto)
    else:
        stored = _with_stored_codes(prepared)
        arrived = describe_arrived(uploaded.proto, stored)
        if arrived.precision is not None and arrived.precision is not options.precision:
            raise InvalidOptionsError(
                f"{arrived.describe()}, in {arrived.precision.upper()}, and cannot be built in"
                f" {options.precision.value}: ask for precision {arrived.precision.value}, which keeps its quantizers,"
                " or upload the FP32 model."
            )
        quantizers = read_quantizers(stored.proto.graph)
        floating = prepare(from_proto(without_pairs(stored.proto, quantizers)))
    workspace.path(ARRIVED).write_text(json.dumps(dataclasses.asdict(arrived), indent=1), encoding="utf-8")
    return floating, {"arrived": arrived.describe(), "layers_quantized": len(arrived.layers)}


def _with_stored_codes(prepared: Model) -> Model:
    """The model with its weights stored as codes, whatever becomes of the codes before they are dequantized."""
    return prepare(from_proto(fold_constant_codes(prepared.proto, read_quantizers(prepared.proto.graph))))


def _described(uploaded: Model, prepared: Model) -> Arrived:
    """As much as can be said: served as it is, a model may hold quantizers that octet would not build from."""
    try:
        return describe_arrived(uploaded.proto, prepared)
    except UnsupportedModelError:
        return Arrived(
            producer=producer(uploaded.proto), precision=None, layers=(), floating={}, asymmetric=()
        )


def arrived_as(workspace: Workspace) -> Arrived | None:
    """What `arrive` found out; None of a model that octet quantizes itself."""
    path = workspace.path(ARRIVED)
    if not path.exists():
        return None
    entry = json.loads(path.read_bytes())
    return Arrived(
        producer=entry["producer"],
        precision=entry["precision"] and Precision(entry["precision"]),
        layers=tuple(entry["layers"]),
        floating=entry["floating"],
        asymmetric=tuple(entry["asymmetric"]),
    )


def write_arrived(
    workspace: Workspace, arrived: Arrived, runtime: Runtime, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Writes the quantized model as this machine's engines take it.

    Raises:
        UnsupportedModelError: the runtime takes symmetric quantizers only, and some cannot be made so.
        EngineRunError: the model fails on the tune samples.
    """
    workspace.path(QUANTIZED).unlink(missing_ok=True)
    stored = _with_stored_codes(prepare(load_uploaded(workspace)))
    symmetric, asymmetric = make_symmetric(stored.proto, read_quantizers(stored.proto.graph))
    if asymmetric and not runtime.takes_asymmetric:
        shown = ", ".join(quote(name) for name in asymmetric[:5])
        raise UnsupportedModelError(
            f"{runtime.name} takes symmetric INT8 only, and {len(asymmetric)} nodes of the model have zero points or"
            f" UINT8 that cannot become so exactly ({shown}): export it with symmetric quantizers, or upload the FP32"
            " model and have octet quantize it."
        )
    model = _marked(symmetric)
    tuned: dict[str, Any] = {}
    widest = widest_code(symmetric)
    if runtime.weight_bits() < 8 and widest > WIDEST_SAFE_CODE:
        narrowed = _marked(narrow_weights(symmetric, read_quantizers(symmetric.graph)))
        model, tuned = _better(workspace, runtime, model, narrowed)
    save_model(model, workspace.path(QUANTIZED))
    QuantizationRecord(choices=None, layers=_layers(arrived)).save(workspace.path(CHOICES))
    progress(1.0)
    return {
        "quantization": f"skipped: {arrived.describe()}",
        "layers_quantized": len(arrived.layers),
        "widest_weight_code": widest,
        **tuned,
    }


def _better(
    workspace: Workspace, runtime: Runtime, wide: Model, narrowed: Model
) -> tuple[Model, dict[str, Any]]:
    """The one whose engine comes closer to the quantized graph on the tune samples."""
    rows = arrived_splits(SampleSet.open(workspace.root / SAMPLES)).tune
    if not rows.rows:
        return narrowed, {"weights": NARROWED}
    uploaded = load_uploaded(workspace)
    tuner = Tuner(uploaded, rows, runtime=runtime, threads=resources.current().threads)
    found_db = {
        name: round(tuner.measure(model).sqnr_db, 2)
        for name, model in ((AS_IT_ARRIVED, wide), (NARROWED, narrowed))
    }
    name = max(found_db, key=found_db.__getitem__)
    return narrowed if name == NARROWED else wide, {"weights": name, "tune_sqnr_db": found_db}


def _layers(arrived: Arrived) -> Layers:
    return Layers(
        quantized=arrived.layers,
        skipped=tuple(
            SkippedLayerReport(node=node, operator=operator, reason=FLOATING)
            for node, operator in arrived.floating.items()
        ),
    )


def arrived_splits(samples: SampleSet) -> Splits:
    """The uses of samples where nothing is calibrated: a quarter of the rows to choose, the others to verify."""
    splits = samples.split()
    nothing = SampleView(samples, np.zeros(0, np.int64))
    if not splits.disjoint:
        # Too few rows to keep some aside: all of them verify, and nothing is chosen.
        return Splits(calibrate=nothing, tune=nothing, verify=splits.verify, disjoint=True)
    verify = np.sort(np.concatenate([splits.calibrate.numbers, splits.verify.numbers]))
    return Splits(calibrate=nothing, tune=splits.tune, verify=SampleView(samples, verify), disjoint=True)


def _marked(proto: onnx.ModelProto) -> Model:
    marked = onnx.ModelProto()
    marked.CopyFrom(proto)
    keep_quantizers(marked)
    return from_proto(marked)
