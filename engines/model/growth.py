"""Operators whose constant operands decide how large their output is.

A file of a hundred bytes may declare a tensor of 2^33 elements this way. onnxruntime allocates it when it
loads the model, and onnx's shape inference does when it propagates data, so growth is judged here, before
either runs.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.errors import UnsupportedModelError
from engines.model.naming import label

MAX_ELEMENTS = 2**29
"""Largest tensor that constants may ask for: 2 GiB of float32."""
MAX_RANK = 64
"""Largest number of axes that a constant shape may spell out."""

_SHAPE_OPERAND = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1}
GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range"})
"""Operators that write more elements than they read, by the value of an operand."""


def constant_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The graph's initializers and the values of its Constant nodes, by name, without strings."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constant_value(node)
        if tensor is not None:
            tensors[node.output[0]] = tensor
    return {name: tensor for name, tensor in tensors.items() if tensor.data_type != TensorProto.STRING}


def constant_value(node: onnx.NodeProto) -> TensorProto | None:
    """The value of a Constant node as a tensor; None for other nodes, strings and sparse values."""
    if node.op_type != "Constant" or node.domain or len(node.output) != 1 or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return None if tensor.data_type == TensorProto.STRING else tensor
    values = {
        "value_int": (attribute.i, np.int64),
        "value_ints": (attribute.ints, np.int64),
        "value_float": (attribute.f, np.float32),
        "value_floats": (attribute.floats, np.float32),
    }
    if attribute.name not in values:
        return None
    value, dtype = values[attribute.name]
    return numpy_helper.from_array(np.array(value, dtype))


def grown_elements(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> int | None:
    """Elements that a growing node writes at least, by its constant operands.

    None where the node does not grow or its operands are not constant.
    """
    if node.domain or node.op_type not in GROWING:
        return None
    if node.op_type == "Range":
        bounds = [constants.get(name) for name in node.input]
        if len(bounds) != 3:
            return None
        values = [numpy_helper.to_array(b).ravel() for b in bounds if b is not None and _elements(b) == 1]
        return _range_elements(*(v[0].item() for v in values)) if len(values) == 3 else None
    position = _SHAPE_OPERAND[node.op_type]
    operand = constants.get(node.input[position]) if len(node.input) > position else None
    if operand is None:
        return None
    elements = math.prod(max(0, int(size)) for size in numpy_helper.to_array(operand).ravel())
    repeated = constants.get(node.input[0]) if node.op_type == "Tile" else None
    return elements if repeated is None else elements * _elements(repeated)


def check_growth(nodes: Iterable[onnx.NodeProto], constants: Mapping[str, TensorProto]) -> None:
    """Refuses nodes whose constant operands ask for a tensor past MAX_ELEMENTS or MAX_RANK.

    Raises:
        UnsupportedModelError: names the first such node and what it asks for.
    """
    for node in nodes:
        position = None if node.domain else _SHAPE_OPERAND.get(node.op_type)
        if position is not None and len(node.input) > position:
            operand = constants.get(node.input[position])
            if operand is not None and _elements(operand) > MAX_RANK:
                raise UnsupportedModelError(
                    f"{label(node)} has a shape operand of {_elements(operand)} axes; octet takes at most"
                    f" {MAX_RANK}: check how the model was exported."
                )
        elements = grown_elements(node, constants)
        if elements is not None and elements > MAX_ELEMENTS:
            raise UnsupportedModelError(
                f"{label(node)} would make a tensor of {elements} elements; octet takes at most"
                f" {MAX_ELEMENTS}: check the constants it reads."
            )


def _elements(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)


def _range_elements(start: float, limit: float, delta: float) -> int:
    if delta == 0 or not all(map(math.isfinite, (start, limit, delta))):
        return MAX_ELEMENTS + 1
    steps = (limit - start) / delta
    return max(0, math.ceil(steps)) if math.isfinite(steps) else MAX_ELEMENTS + 1
