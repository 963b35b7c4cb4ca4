"""Graphs in 16-bit or 64-bit floats, computed in FP32: what is quantized, and what the processors here are fast at.

Every such float becomes an FP32 one: weights are converted, casts and attributes that name the type name FP32. Inputs
and outputs keep their types behind casts at the edges, so clients see the model as it was uploaded. Of 16-bit floats
the change is exact, and what is computed in between is closer to the real numbers than in the uploaded model. 64-bit
floats lose digits that no 8-bit engine has, and a model that needs them fails the proof of its FP32 engine.
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from engines.preparation.tidying import fresh_name, tensor_names

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "output_dtype", "to"})
"""Attributes that name an element type."""


def is_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in 16-bit floats anywhere."""
    return not _float_types(proto.graph).isdisjoint(_HALVES)


def is_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in bfloat16 anywhere."""
    return TensorProto.BFLOAT16 in _float_types(proto.graph)


def types_to_convert(proto: onnx.ModelProto) -> frozenset[int]:
    """The float types that are to become FP32.

    64-bit floats only where layers have weights of them: elsewhere they may count rows or pixels.
    """
    halves = _HALVES if is_half(proto) else ()
    doubles = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.DOUBLE}
    layers = (node for node in proto.graph.node if node.op_type in _LAYERS)
    computes = any(name in doubles for node in layers for name in node.input[:2])
    return frozenset({*halves, TensorProto.DOUBLE} if computes else halves)


def _float_types(graph: onnx.GraphProto) -> set[int]:
    """The 16-bit float types that inputs, outputs, weights or attributes of a graph have."""
    values = (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    attributes = (_type_of(attribute) for node in graph.node for attribute in node.attribute)
    return {*values, *attributes, *(tensor.data_type for tensor in graph.initializer)}.intersection(_HALVES)


def convert(graph: onnx.GraphProto, types: Collection[int]) -> None:
    """Turns floats of these types into FP32, inputs and outputs aside."""
    # Bits that are reinterpreted have no wider equal.
    if any(node.op_type == "BitCast" for node in graph.node):
        return
    for tensor in graph.initializer:
        _convert_tensor(tensor, types)
    for node in graph.node:
        for attribute in node.attribute:
            if _type_of(attribute) in types:
                _convert_attribute(attribute, types)
    taken = tensor_names(graph)
    given = {value.name for value in graph.input}
    before = [_cast_input(graph, value, taken) for value in graph.input if _element_type(value) in types]
    after = [
        _cast_output(graph, value, taken)
        for value in graph.output
        if _element_type(value) in types and value.name not in given
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


def _type_of(attribute: AttributeProto) -> int:
    """The element type that an attribute names or holds, or 0."""
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT:
        return int(attribute.i)
    return int(attribute.t.data_type) if attribute.type == AttributeProto.TENSOR else 0


def _convert_attribute(attribute: AttributeProto, types: Collection[int]) -> None:
    if attribute.type == AttributeProto.TENSOR:
        _convert_tensor(attribute.t, types)
    else:
        attribute.i = TensorProto.FLOAT


def _convert_tensor(tensor: TensorProto, types: Collection[int]) -> None:
    if tensor.data_type in types:
        with np.errstate(over="ignore"):
            single = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))


def _element_type(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _cast_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto, taken: set[str]) -> onnx.NodeProto:
    """A cast of the input, which all nodes read in its place."""
    wide = fresh_name(f"{value.name}_float32", taken)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == value.name:
                node.input[place] = wide
    return helper.make_node("Cast", [value.name], [wide], to=TensorProto.FLOAT)


def _cast_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, taken: set[str]) -> onnx.NodeProto:
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
