"""The part of an 8-bit model that is not quantized, in 16-bit floats: TensorRT computes in the types of the graph.

onnxruntime's conversion writes the types and the casts. Around it is what it leaves open: it writes FP16 scales at
opsets whose QuantizeLinear has none; it rounds what goes from one float32 node to the next, and a constant that both
kinds of nodes read, to FP16 and back, so that 1e5 becomes infinite on its way; it leaves its casts at the end of the
graph, where nodes that are not in order are no valid ONNX.
"""

import graphlib
from collections.abc import Collection, Mapping

import onnx
import onnx.checker
import onnx.shape_inference
from onnx import TensorProto

from engines.errors import CompileError
from engines.model.checks import default_opset, one_sentence
from engines.model.wiring import int_attribute
from engines.preparation.opset import WANTED_OPSET, upgrade_opset
from engines.preparation.tidying import (
    constants_to_initializers,
    fresh_name,
    name_nodes,
    remove_dead_nodes,
    remove_identities,
    tensor_names,
)
from engines.quantization.single_nodes import single_nodes
from engines.runtimes.reference import convert_to_half

_LEAST_OPSET = 19
"""The first opset whose quantizers have FP16 scales."""


def halve_rest(proto: onnx.ModelProto, magnitudes: Mapping[str, float]) -> onnx.ModelProto:
    """A copy that computes in FP16 what `engines.quantization.single_nodes` does not keep in float32.

    Inputs and outputs keep their names and types.

    Args:
        proto: a model in one piece, with or without quantizers.
        magnitudes: the largest magnitude of every floating tensor of the FP32 model, as seen in calibration.

    Raises:
        CompileError: the model cannot be written so.
    """
    try:
        model = _inferred(proto)
        kept = single_nodes(model.graph, magnitudes)
        _split_constants(model.graph, kept)
        own = {node.name for node in model.graph.node}
        halved = convert_to_half(model, kept)
        _join_casts(halved.graph, own)
        _sort(halved.graph)
        remove_identities(halved.graph)
        remove_dead_nodes(halved.graph)
        # Types of before, and of casts that are gone.
        del halved.graph.value_info[:]
        onnx.checker.check_model(halved, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as error:
        raise CompileError(
            f"the part of the model that is not quantized cannot be written in 16-bit floats ({one_sentence(error)}); "
            'build it with the option "rest": "fp32".'
        ) from error
    return halved


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at an opset with FP16 scales: named nodes, constants as initializers, types of all tensors."""
    model = onnx.ModelProto()
    model.CopyFrom(proto if default_opset(proto) >= WANTED_OPSET else upgrade_opset(proto))
    if default_opset(model) < _LEAST_OPSET:
        raise ValueError(
            f"it has opset {default_opset(model)}, and scales in 16-bit floats begin with {_LEAST_OPSET}"
        )
    constants_to_initializers(model.graph)
    name_nodes(model.graph)
    return onnx.shape_inference.infer_shapes(model)


def _split_constants(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Gives nodes that stay in float32 copies of the constants that others read as well."""
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    shared = {
        name for node in graph.node if node.name not in kept for name in node.input if name in constants
    }
    taken = tensor_names(graph)
    copies: dict[str, str] = {}
    for node in graph.node:
        if node.name not in kept:
            continue
        for place, name in enumerate(node.input):
            if name in shared:
                if name not in copies:
                    copies[name] = fresh_name(f"{name}_float32", taken)
                    copy = graph.initializer.add()
                    copy.CopyFrom(constants[name])
                    copy.name = copies[name]
                node.input[place] = copies[name]


def _join_casts(graph: onnx.GraphProto, own: Collection[str]) -> None:
    """Hands float32 values on that the conversion had cast to FP16 and back; `own` are names of the model's nodes."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in own}
    for cast in casts.values():
        before = casts.get(cast.input[0])
        if (
            before is not None
            and _target(cast) == TensorProto.FLOAT
            and _target(before) == TensorProto.FLOAT16
        ):
            cast.op_type = "Identity"
            cast.input[0] = before.input[0]
            del cast.attribute[:]


def _target(cast: onnx.NodeProto) -> int:
    return int_attribute(cast, "to", 0)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts nodes behind what they read."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    order = graphlib.TopologicalSorter(
        {
            place: [makers[name] for name in node.input if name in makers]
            for place, node in enumerate(graph.node)
        }
    )
    nodes = list(graph.node)
    ordered = [onnx.NodeProto.FromString(nodes[place].SerializeToString()) for place in order.static_order()]
    del graph.node[:]
    graph.node.extend(ordered)
