"""The FP32 model as it is observed, quantized and, where 8 bits may not, served."""

from pathlib import Path

import onnx
import onnx.shape_inference
from onnx import TensorProto

from engines.errors import UnsupportedModelError
from engines.model.checks import check_tensor_size, default_opset, one_sentence
from engines.model.external_weights import bare_copy
from engines.model.growth import GROWING, check_growth, constant_tensors, grown_elements
from engines.model.model import Model, from_proto, load_model
from engines.preparation.attention import simplify_attention
from engines.preparation.batch_norm import fold_batch_norms
from engines.preparation.folding import fold_constants
from engines.preparation.free_batch import free_batch
from engines.preparation.matrix_products import plain_products
from engines.preparation.opset import set_ir_version, upgrade_opset
from engines.preparation.single_precision import convert, skip_equal_casts, types_to_convert
from engines.preparation.tidying import (
    constants_to_initializers,
    hide_default_inputs,
    name_nodes,
    remove_dead_nodes,
    remove_identities,
)

_FOLDING_ROUNDS = 8
_FREE_FOLDED_BYTES = 64 * 2**20
"""What folding may add to a model, besides twice the size of its weights."""
_PROPAGATED_ELEMENTS = 256
_SHAPE_TYPES = (TensorProto.INT32, TensorProto.INT64)


def prepare(model: Model) -> Model:
    """A new model that computes the same and that the quantizer can work on; `model` is left as it is.

    Its opset is 21 where onnx can convert to it (else the nearest that quantization can work with), constants are
    initializers, other floats are computed in FP32, weights that were reshaped, transposed or cast are folded,
    BatchNormalization is part of the convolution before it, products with weights are plain ones, attention is written
    as runtimes know it, nothing is dead, every node has a name of its own and every tensor whose shape can be inferred
    has it. Inputs and outputs keep names, order, types and shapes.

    Raises:
        UnsupportedModelError: the opset is too old to convert, or the graph's constants ask for a tensor past all
            bounds.
    """
    proto = upgrade_opset(model.proto)
    graph = proto.graph
    hide_default_inputs(graph)
    constants_to_initializers(graph)
    if types := types_to_convert(proto):
        convert(graph, types)
        skip_equal_casts(graph, _element_types(proto))
    remove_identities(graph)
    _fold(proto)
    fold_batch_norms(graph)
    remove_dead_nodes(graph)
    _note_shapes(graph, _infer(proto, data_prop=False))
    plain_products(graph)
    simplify_attention(graph, default_opset(proto))
    name_nodes(graph)
    set_ir_version(proto)
    return _with_shapes(proto)


def load_prepared(path: Path) -> Model:
    """Reads a model that `prepare` made, or that was made of one: with its shapes, which no file is trusted with.

    Raises:
        InvalidModelError, UnsupportedModelError: the file is not what was written.
    """
    return _with_shapes(load_model(path).proto)


def prepare_free_batch(prepared: Model) -> Model:
    """A candidate with a free batch of a prepared model with a fixed one; it is for the caller to prove.

    Raises:
        UnsupportedModelError: no candidate is found; the message says where the batch is stuck.
    """
    return _with_shapes(free_batch(prepared))


def _with_shapes(proto: onnx.ModelProto) -> Model:
    """The model, with every shape that can be inferred written into the proto."""
    values = _infer(proto, data_prop=False)
    if _may_propagate(proto.graph, values):
        values = _infer(proto, data_prop=True)
    _note_shapes(proto.graph, values)
    return from_proto(proto)


def _note_shapes(graph: onnx.GraphProto, values: list[onnx.ValueInfoProto]) -> None:
    del graph.value_info[:]
    graph.value_info.extend(values)


def _element_types(proto: onnx.ModelProto) -> dict[str, int]:
    values = (*proto.graph.input, *proto.graph.output, *_infer(proto, data_prop=False))
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def _fold(proto: onnx.ModelProto) -> None:
    """Folds until nothing changes: a folded shape makes further shapes known."""
    budget_bytes = _FREE_FOLDED_BYTES + 2 * sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    for _ in range(_FOLDING_ROUNDS):
        remove_dead_nodes(proto.graph)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        for value in (*proto.graph.input, *_infer(proto, data_prop=False)):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                shapes[value.name] = tuple(dim.dim_value for dim in dims)
        opset = default_opset(proto)
        added_bytes = fold_constants(proto.graph, shapes, opset=opset, budget_bytes=budget_bytes)
        if not added_bytes:
            return
        budget_bytes -= added_bytes


def _infer(proto: onnx.ModelProto, *, data_prop: bool) -> list[onnx.ValueInfoProto]:
    """Types and shapes of the tensors between inputs and outputs, as far as they follow from the graph."""
    constants = constant_tensors(proto.graph)
    check_growth(proto.graph.node, constants)
    bare = bare_copy(proto)
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=data_prop)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(
            f"the shapes in the model cannot be inferred once constants are folded: {one_sentence(error)}."
            " Export it again with constant folding on."
        ) from error
    for value in inferred.graph.value_info:
        check_tensor_size(value)
    return list(inferred.graph.value_info)


def _may_propagate(graph: onnx.GraphProto, values: list[onnx.ValueInfoProto]) -> bool:
    """Whether inference may follow the values of shapes, each of which it keeps in memory.

    It builds what a growing operator asks for, so all that looks like a shape must be known to be short.
    """
    constants = constant_tensors(graph)
    grown = (grown_elements(node, constants) for node in graph.node if node.op_type in GROWING)
    if any(elements is None or elements > _PROPAGATED_ELEMENTS for elements in grown):
        return False
    tensors = (value.type.tensor_type for value in values)
    vectors = (t.shape.dim[0] for t in tensors if t.elem_type in _SHAPE_TYPES and len(t.shape.dim) == 1)
    return all(dim.HasField("dim_value") and dim.dim_value <= _PROPAGATED_ELEMENTS for dim in vectors)
