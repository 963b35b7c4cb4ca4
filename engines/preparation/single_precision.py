"""Graphs in 16-bit floats, computed in FP32: what is quantized, and what the processors here are fast at.

Every 16-bit float becomes an FP32 one, exactly: weights are widened, casts and attributes that name the type name
FP32. Inputs and outputs keep their types behind casts at the edges, so clients see the model as it was uploaded.
What is computed in between is closer to the real numbers than in the uploaded model.
"""

from collections.abc import Mapping

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from engines.preparation.tidying import fresh_name, tensor_names

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "output_dtype", "to"})
"""Attributes that name an element type."""


def is_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in 16-bit floats anywhere."""
    return not _float_types(proto.graph).isdisjoint(_HALVES)


def is_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in bfloat16 anywhere."""
    return TensorProto.BFLOAT16 in _float_types(proto.graph)


def _float_types(graph: onnx.GraphProto) -> set[int]:
    """The 16-bit float types that inputs, outputs, weights or attributes of a graph have."""
    values = (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    attributes = (_half_type(attribute) for node in graph.node for attribute in node.attribute)
    return {*values, *attributes, *(tensor.data_type for tensor in graph.initializer)}.intersection(_HALVES)


def widen(graph: onnx.GraphProto) -> None:
    """Turns a graph in 16-bit floats into one in FP32, its inputs and outputs aside. Others stay as they are."""
    # Bits that are reinterpreted have no wider equal.
    if any(node.op_type == "BitCast" for node in graph.node):
        return
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if _half_type(attribute):
                _widen_attribute(attribute)
    taken = tensor_names(graph)
    given = {value.name for value in graph.input}
    before = [_widened_input(graph, value, taken) for value in graph.input if _is_half_value(value)]
    after = [
        _narrowed_output(graph, value, taken)
        for value in graph.output
        if _is_half_value(value) and value.name not in given
    ]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*before, *graph.node, *after)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]


def skip_equal_casts(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """Makes identities of casts to the type that their input has; `types` are element types by tensor."""
    for node in graph.node:
        if node.op_type == "Cast" and types.get(node.input[0]) == _target(node):
            node.op_type = "Identity"
            del node.attribute[:]


def _target(node: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in node.attribute if attribute.name == "to"))


def _half_type(attribute: AttributeProto) -> int:
    """The 16-bit float type that an attribute names or holds, or 0."""
    kind = 0
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT:
        kind = attribute.i
    elif attribute.type == AttributeProto.TENSOR:
        kind = attribute.t.data_type
    return kind if kind in _HALVES else 0


def _widen_attribute(attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    else:
        attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _HALVES:
        wide = numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _is_half_value(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in _HALVES


def _widened_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto, taken: set[str]) -> onnx.NodeProto:
    """A cast of the input, which all nodes read in its place."""
    wide = fresh_name(f"{value.name}_float32", taken)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == value.name:
                node.input[place] = wide
    return helper.make_node("Cast", [value.name], [wide], to=TensorProto.FLOAT)


def _narrowed_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, taken: set[str]) -> onnx.NodeProto:
    """A cast to the output, from what wrote it before."""
    wide = fresh_name(f"{value.name}_float32", taken)
    for tensor in graph.initializer:
        if tensor.name == value.name:
            tensor.name = wide
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == value.name:
                    names[place] = wide
    return helper.make_node("Cast", [wide], [value.name], to=value.type.tensor_type.elem_type)
