"""Cheap constant folding: shape arithmetic, and weights that are cast, moved or normalized before their use.

Exporters leave such nodes between a weight and its layer; the quantizer looks for weights that are constants.
Only operators that are known to be harmless are evaluated, results never outgrow what they come from, and
everything folded together is bounded, because the model is anyone's.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.reference
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.model.growth import GROWING, grown_elements
from engines.model.wiring import int_attribute

_LOGICAL = frozenset({"And", "Equal", "Greater", "Less", "Not", "Or", "Where"})
_ARITHMETIC = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_FUNCTIONS = frozenset(
    {"Abs", "Ceil", "Exp", "Floor", "Log", "Neg", "Reciprocal"}
    | {"Relu", "Round", "Sigmoid", "Sign", "Softplus", "Sqrt", "Tanh"}
)
_ELEMENTWISE = _LOGICAL | _ARITHMETIC | _FUNCTIONS
_REDUCING = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)
"""Weights are normalized by them in the graph: weight normalization, weight standardization."""
_MOVING = frozenset({"Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_NO_LARGER = _REDUCING | _MOVING | {"BatchNormalization", "Cast", "Clip", "Softmax"}
_FOLDED = _ELEMENTWISE | _NO_LARGER | GROWING | {"Concat", "Gather"}

_FREE_ELEMENTS = 2**16
"""Results up to this size are folded whatever they come from."""
_Constants = dict[str, TensorProto]


def fold_constants(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], *, opset: int, budget_bytes: int
) -> int:
    """Evaluates nodes whose inputs are all constant and puts initializers in their place.

    `shapes` are those of tensors that are known entirely: Shape and Size of them are constant too. Returns the
    bytes that were added, at most `budget_bytes`; 0 where there was nothing to fold.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    read = outputs.union(*(node.input for node in graph.node))
    added_bytes = 0
    folded = []
    for place, node in enumerate(graph.node):
        if outputs.intersection(node.output) or read.intersection(node.output[1:]):
            continue
        value = _shape_value(node, shapes) or _evaluated(node, constants, opset)
        if value is None or added_bytes + value.ByteSize() > budget_bytes:
            continue
        added_bytes += value.ByteSize()
        value.name = node.output[0]
        constants[value.name] = value
        graph.initializer.append(value)
        folded.append(place)
    for place in reversed(folded):
        del graph.node[place]
    return added_bytes


def _shape_value(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> TensorProto | None:
    shape = shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
    if shape is None:
        return None
    if node.op_type == "Size":
        return numpy_helper.from_array(np.array(math.prod(shape), np.int64))
    start = int_attribute(node, "start", 0)
    end = next((attribute.i for attribute in node.attribute if attribute.name == "end"), None)
    return numpy_helper.from_array(np.array(shape[start:end], np.int64))


def _evaluated(node: onnx.NodeProto, constants: _Constants, opset: int) -> TensorProto | None:
    names = [name for name in node.input if name]
    if node.op_type not in _FOLDED or not names or any(name not in constants for name in names):
        return None
    size = _elements_after(node, constants)
    if size is None or size > max(_FREE_ELEMENTS, *(math.prod(constants[name].dims) for name in names)):
        return None
    model = _single_node_model(node, {name: constants[name] for name in names}, opset)
    try:
        return numpy_helper.from_array(_run(model))
    except _EVALUATION_ERRORS:
        # The evaluator is not complete; what it cannot do is left to the runtime.
        return None


def _run(model: onnx.ModelProto) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        results: Any = onnx.reference.ReferenceEvaluator(model).run(None, {})
    return np.asarray(results[0])


_EVALUATION_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _elements_after(node: onnx.NodeProto, constants: _Constants) -> int | None:
    """An upper bound of the elements that the node writes; None where there is none."""
    shapes: list[tuple[int, ...]] = [tuple(constants[name].dims) for name in node.input if name]
    if node.op_type in _NO_LARGER:
        return math.prod(shapes[0])
    if node.op_type == "Concat":
        return sum(math.prod(shape) for shape in shapes)
    if node.op_type == "Gather":
        axis = int_attribute(node, "axis", 0)
        return math.prod(shapes[1]) * math.prod(shapes[0]) // max(1, shapes[0][axis]) if shapes[0] else None
    if node.op_type == "Expand":
        target = tuple(int(size) for size in numpy_helper.to_array(constants[node.input[1]]).ravel())
        shapes = [shapes[0], target]
    elif node.op_type in GROWING:
        return grown_elements(node, constants)
    try:
        return math.prod(np.broadcast_shapes(*shapes))
    except ValueError:
        return None


def _single_node_model(
    node: onnx.NodeProto, inputs: Mapping[str, TensorProto], opset: int
) -> onnx.ModelProto:
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "fold", [], [output], list(inputs.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
