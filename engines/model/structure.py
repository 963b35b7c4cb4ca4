"""The bare protobuf of an untrusted model: how much there is, how deep it nests, what its tensors hold."""

import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper

from engines.errors import InvalidModelError, UnsupportedModelError
from engines.model.naming import label, quote

MAX_NODES = 100_000
MAX_GRAPH_DEPTH = 8

_Body = onnx.GraphProto | onnx.FunctionProto

# Element types of less than a byte: several elements share one.
_PACKED_BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}
_COMPLEX = frozenset({TensorProto.COMPLEX64, TensorProto.COMPLEX128})


def check_structure(proto: onnx.ModelProto) -> None:
    """Counts nodes and nesting and looks at every name and tensor, functions and training included.

    Raises:
        InvalidModelError: a name is no text, or a tensor does not hold what its type and shape declare.
        UnsupportedModelError: too many nodes, too deep, a tensor kept in another file, or a sparse tensor.
    """
    _check_text(entry.domain for entry in proto.opset_import)
    pending: list[tuple[_Body, int]] = [(proto.graph, 1), *((body, 1) for body in proto.functions)]
    for training in proto.training_info:
        pending += [(training.initialization, 1), (training.algorithm, 1)]
    nodes = 0
    while pending:
        body, depth = pending.pop()
        nodes += len(body.node)
        if nodes > MAX_NODES:
            raise UnsupportedModelError(
                f"the model has more than {MAX_NODES} nodes, the most that octet takes: export a smaller"
                " model."
            )
        if depth > MAX_GRAPH_DEPTH:
            raise UnsupportedModelError(
                f"the model nests graphs more than {MAX_GRAPH_DEPTH} deep: export it without control flow."
            )
        pending += [(inner, depth + 1) for inner in _check_body(body)]


def _check_body(body: _Body) -> list[onnx.GraphProto]:
    """Checks the names and tensors of one graph and returns the graphs inside it."""
    _check_text(_names(body))
    if isinstance(body, onnx.GraphProto):
        for tensor in body.initializer:
            _check_tensor(tensor, f"initializer {quote(tensor.name)}")
        for sparse in body.sparse_initializer:
            _refuse_sparse(sparse, f"initializer {quote(sparse.values.name)}")
    inner: list[onnx.GraphProto] = []
    for where, attribute in _attributes(body):
        if attribute.HasField("t"):
            _check_tensor(attribute.t, where)
        for tensor in attribute.tensors:
            _check_tensor(tensor, where)
        if attribute.HasField("sparse_tensor"):
            _refuse_sparse(attribute.sparse_tensor, where)
        for sparse in attribute.sparse_tensors:
            _refuse_sparse(sparse, where)
        if attribute.HasField("g"):
            inner.append(attribute.g)
        inner += attribute.graphs
    return inner


def _check_text(names: Iterable[str | bytes]) -> None:
    # protobuf hands out a string that is not UTF-8 as bytes.
    for name in names:
        if isinstance(name, bytes):
            raise InvalidModelError(
                f"the model holds a name that is not UTF-8 text ({name[:32]!r}): the file is damaged; export"
                " the model again."
            )


def _names(body: _Body) -> Iterator[str | bytes]:
    yield body.name
    for node in body.node:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    if isinstance(body, onnx.FunctionProto):
        yield from (body.domain, body.overload, *body.input, *body.output)
        yield from (entry.domain for entry in body.opset_import)
        return
    yield from (tensor.name for tensor in body.initializer)
    for value in (*body.input, *body.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _attributes(body: _Body) -> Iterator[tuple[str, onnx.AttributeProto]]:
    for number, node in enumerate(body.node):
        for attribute in node.attribute:
            yield f"attribute {quote(attribute.name)} of {label(node, number)}", attribute
    if isinstance(body, onnx.FunctionProto):
        for attribute in body.attribute_proto:
            yield f"attribute {quote(attribute.name)} of function {quote(body.name)}", attribute


def _check_tensor(tensor: TensorProto, where: str) -> None:
    _check_inside(tensor, where)
    shape = list(tensor.dims)
    if any(size < 0 for size in shape):
        raise InvalidModelError(f"{where} has a negative size in its shape {shape}: export the model again.")
    if tensor.data_type == TensorProto.UNDEFINED or tensor.data_type not in TensorProto.DataType.values():
        raise InvalidModelError(
            f"{where} has an unknown element type (number {tensor.data_type}): export the model again."
        )
    elements = math.prod(shape)
    if tensor.HasField("raw_data"):
        unit, needed, stored = "bytes", _stored_bytes(tensor.data_type, elements), len(tensor.raw_data)
    else:
        unit, needed = "values", _stored_values(tensor.data_type, elements)
        stored = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if stored != needed:
        raise InvalidModelError(
            f"{where} declares the shape {shape}, which is {needed} {unit}, but holds {stored}: the file is"
            " damaged; export the model again."
        )


def _check_inside(tensor: TensorProto, where: str) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UnsupportedModelError(
            f"{where} keeps its data in another file, which was not given: give that file too (a part 'weights' of the"
            " upload, --weights of the command), or save the model with all weights inside (onnx.save with"
            " save_as_external_data=False)."
        )


def _refuse_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    _check_inside(sparse.values, where)
    _check_inside(sparse.indices, where)
    raise UnsupportedModelError(
        f"{where} is sparse, which octet does not take: export the model with dense tensors."
    )


def _stored_bytes(data_type: int, elements: int) -> int:
    bits = _PACKED_BITS.get(data_type)
    if bits is not None:
        return -(-elements * bits // 8)
    item_bytes: int = helper.tensor_dtype_to_np_dtype(data_type).itemsize
    return elements * item_bytes


def _stored_values(data_type: int, elements: int) -> int:
    if data_type in _PACKED_BITS:
        return _stored_bytes(data_type, elements)
    return 2 * elements if data_type in _COMPLEX else elements
