"""What TensorRT made of a model, read from the description that its inspector gives of an engine.

The format is TensorRT's JSON of `LayerInformationFormat.JSON` with detailed verbosity: a list `Layers` of objects with
`Name`, `LayerType`, `Inputs` and `Outputs` (each with `Format/Datatype`) and `Metadata`, the ONNX nodes that the layer
computes as `[ONNX Layer: name]`, separated by an ASCII record separator. Fields that are missing are left out.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from engines.runtimes.base import EngineLayers

_TYPES = {
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\bfp8\b|\be4m3\b|\bfloat8", re.IGNORECASE),
    "fp16": re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE),
    "fp32": re.compile(r"\bfp32\b|\bfloat\b|\bfloat32\b", re.IGNORECASE),
}
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]*)\]")
_MOVES = frozenset({"reformat", "noop", "constant", "shape", "shapeshuffle", "signal", "wait"})
"""Kinds of layers that compute nothing."""


def read_layers(text: str, quantizers: Collection[str]) -> EngineLayers:
    """What runs in which type.

    Args:
        text: what the inspector said.
        quantizers: names of the model's QuantizeLinear and DequantizeLinear nodes.
    """
    try:
        layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    except (ValueError, KeyError, TypeError):
        # Without detailed verbosity layers are bare names: nothing is known of their types.
        return EngineLayers(by_type={}, eight_bit=(), alone=())
    by_type: Counter[str] = Counter()
    eight_bit, alone = [], []
    known = frozenset(quantizers)
    for layer in layers:
        name, nodes = str(layer.get("Name", "")), _nodes(layer)
        if nodes and nodes <= known:
            alone.extend(sorted(nodes))
        elif str(layer.get("LayerType", "")).lower() not in _MOVES:
            kind = _type(layer)
            by_type[kind] += 1
            if kind in ("int8", "fp8"):
                eight_bit.append(name)
    return EngineLayers(by_type=dict(by_type), eight_bit=tuple(eight_bit), alone=tuple(alone))


def _nodes(layer: Mapping[str, Any]) -> set[str]:
    return set(_NODE.findall(str(layer.get("Metadata", ""))))


def _type(layer: Mapping[str, Any]) -> str:
    """The type of the first input: what a layer multiplies. Its other inputs are biases and residual sums."""
    for tensor in layer.get("Inputs") or layer.get("Outputs") or ():
        described = str(tensor.get("Format/Datatype", "")) if isinstance(tensor, dict) else ""
        for name, pattern in _TYPES.items():
            if pattern.search(described):
                return name
    return "other"
