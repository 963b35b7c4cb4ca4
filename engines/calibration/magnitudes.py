"""How large every floating tensor of a model becomes on the samples, and a model that carries this along.

Runtimes that compute in 16-bit floats what is not quantized decide by it what these floats hold
(`engines.quantization.half_precision`). The artifact carries it, so that every machine that compiles it decides alike.
"""

import json
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from engines.model.model import Model, from_proto
from engines.model.tensors import Array
from engines.runtimes.reference import ReferenceSession

_KEY = "octet.magnitudes"
"""The entry of the model's metadata."""


def observe_magnitudes(
    model: Model, batches: Iterable[Mapping[str, Array]], *, threads: int
) -> dict[str, float]:
    """The largest magnitude of every floating tensor over all batches, rounded to three digits.

    Tensors that were not finite are left out.

    Raises:
        EngineRunError: the model failed on a batch.
    """
    names = _floating(model.proto.graph)
    session = ReferenceSession(model.proto, outputs=names, threads=threads, fused=True)
    found = dict.fromkeys(names, 0.0)
    for feeds in batches:
        for name, values in session.run(feeds).items():
            # NaN stays NaN.
            found[name] = float(np.maximum(found[name], np.abs(values).max(initial=0.0)))
    return {name: float(f"{value:.3g}") for name, value in found.items() if np.isfinite(value)}


def with_magnitudes(model: Model, magnitudes: Mapping[str, float]) -> Model:
    """The same model, carrying its magnitudes."""
    noted = from_proto(model.proto)
    entry = noted.proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(magnitudes, sort_keys=True, separators=(",", ":"))
    return noted


def noted_magnitudes(proto: onnx.ModelProto) -> dict[str, float] | None:
    """What a model carries; None where it carries nothing."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == _KEY), None)
    return None if text is None else {str(name): float(value) for name, value in json.loads(text).items()}


def _floating(graph: onnx.GraphProto) -> list[str]:
    """Names of the float32 tensors that are no constants."""
    constants = {tensor.name for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    return list(
        dict.fromkeys(
            value.name
            for value in values
            if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in constants
        )
    )
