"""Admission of untrusted ONNX: everything that can be judged before any library runs the graph.

The order matters. Counts, nesting, external data and growth are judged on the bare protobuf, because onnx's
own checker takes a minute for a nested If of four kilobytes, and its shape inference allocates what a
constant asks for. What comes later may then trust what came before.
"""

import math
from collections.abc import Iterable

import onnx
import onnx.checker
import onnx.shape_inference
from onnx import helper

from engines.errors import InvalidModelError, UnsupportedModelError
from engines.model.external_weights import bare_copy, is_large, skeleton
from engines.model.functions import inline_functions
from engines.model.growth import check_growth, constant_tensors
from engines.model.naming import label, quote
from engines.model.signature import input_specs
from engines.model.structure import MAX_NODES, check_structure

OLDEST_OPSET = 7
NEWEST_OPSET = onnx.defs.onnx_opset_version()
MAX_TENSOR_BYTES = 2**31
"""Largest tensor whose size follows from the graph alone, free dimensions counted as 1."""

_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
_QUANTIZING = ("Quant", "QLinear", "QGemm", "QAttention", "Integer", "NBits")
"""Parts of the names of custom operators that compute on codes, or make them."""
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def admit(proto: onnx.ModelProto) -> None:
    """Checks a model that came from outside and normalises it in place.

    Afterwards it has only operators of the default domain, no functions, no training information, and outputs
    whose shapes follow from the graph.

    Raises:
        InvalidModelError: it breaks ONNX's own rules.
        UnsupportedModelError: it is ONNX that octet does not take.
    """
    _check_header(proto)
    check_structure(proto)
    del proto.training_info[:]
    inline_functions(proto, max_nodes=MAX_NODES)
    _check_operators(proto)
    _drop_other_domains(proto)
    _check_names(proto.graph)
    input_specs(proto.graph)
    _check_onnx_rules(proto)
    check_growth(proto.graph.node, constant_tensors(proto.graph))
    _infer_outputs(proto)


def default_opset(proto: onnx.ModelProto) -> int:
    """The version of the default operator domain.

    Raises:
        InvalidModelError: none is declared, or two different ones are.
    """
    versions: set[int] = {entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS}
    if len(versions) != 1:
        seen = " and ".join(str(version) for version in sorted(versions)) or "none"
        raise InvalidModelError(
            f"the model must declare one opset of the standard operators, but declares {seen}: export it"
            " again."
        )
    return versions.pop()


def one_sentence(error: Exception) -> str:
    """What an onnx error says, on one line, without its dump of context."""
    text = " ".join(str(error).split("==> Context")[0].split())
    for prefix in (
        "[ShapeInferenceError] Inference error(s): ",
        "[TypeInferenceError] ",
        "[ShapeInferenceError] ",
    ):
        text = text.removeprefix(prefix)
    text = text.replace("[ShapeInferenceError] ", "").replace("[TypeInferenceError] ", "").rstrip(". ")
    return text if len(text) <= 300 else text[:297] + "..."


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise InvalidModelError("the model holds no graph, so it is not an ONNX model: export it again.")
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"the model has IR version {proto.ir_version}; octet reads up to {onnx.IR_VERSION}: export it"
            " with an older ONNX release."
        )
    # First: converters of classical models declare the oldest opset that they can do with.
    _refuse_classical(proto.graph)
    opset = default_opset(proto)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"the model has opset {opset}; octet takes {OLDEST_OPSET} to {NEWEST_OPSET}: export it again with"
            " an opset in this range."
        )


def _refuse_classical(graph: onnx.GraphProto) -> None:
    for number, node in enumerate(graph.node):
        if node.domain == "ai.onnx.ml":
            raise UnsupportedModelError(
                f"{label(node, number)} is an operator of classical machine learning (ai.onnx.ml); octet"
                " takes neural networks of standard ONNX operators only."
            )


def _check_operators(proto: onnx.ModelProto) -> None:
    # Again: functions that were inlined may hold some.
    _refuse_classical(proto.graph)
    opset = default_opset(proto)
    for number, node in enumerate(proto.graph.node):
        if node.domain in _DEFAULT_DOMAINS:
            node.domain = ""
            _check_standard_operator(node, label(node, number), opset)
        else:
            raise UnsupportedModelError(
                f"{label(node, number)} is a custom operator of the domain {quote(node.domain)}; octet takes"
                f" standard ONNX operators only: {_without_custom(node)}"
            )


def _without_custom(node: onnx.NodeProto) -> str:
    """What to do about a custom operator; those that quantize have a standard form."""
    if any(word in node.op_type for word in _QUANTIZING):
        return (
            "export the quantized model in Q/DQ form, with standard QuantizeLinear and DequantizeLinear (for"
            " onnxruntime quantize_static with QuantFormat.QDQ, for NNCF its ONNX export), or upload the FP32 model."
        )
    return "export the model without custom or runtime-specific operators."


def _check_standard_operator(node: onnx.NodeProto, name: str, opset: int) -> None:
    if node.op_type in _CONTROL_FLOW or any(a.HasField("g") or a.graphs for a in node.attribute):
        raise UnsupportedModelError(
            f"{name} is control flow, which octet does not take: export the model with fixed branches and"
            " unrolled loops."
        )
    if not onnx.defs.has(node.op_type):
        raise UnsupportedModelError(
            f"{name} is no operator of the ONNX standard; octet takes standard ONNX operators only: express"
            " it by standard ones when exporting."
        )
    if not onnx.defs.has(node.op_type, opset, ""):
        since = onnx.defs.get_schema(node.op_type).since_version
        raise InvalidModelError(
            f"{name} exists from opset {since} on, but the model declares opset {opset}: export it with opset"
            f" {since}."
        )
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if schema.deprecated:
        newest = onnx.defs.get_schema(node.op_type)
        remedy = (
            "with a current exporter" if newest.deprecated else f"with opset {newest.since_version} or later"
        )
        raise InvalidModelError(
            f"{name} is withdrawn from ONNX as of opset {schema.since_version}, but the model declares opset"
            f" {opset}: export it again {remedy}."
        )


def _drop_other_domains(proto: onnx.ModelProto) -> None:
    """Exporters import domains that no node uses; runtimes would look for them."""
    opset = default_opset(proto)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", opset))


def _check_names(graph: onnx.GraphProto) -> None:
    initializers = [tensor.name for tensor in graph.initializer]
    inputs = [value.name for value in graph.input]
    outputs = [value.name for value in graph.output]
    written = [name for node in graph.node for name in node.output if name]
    for role, names in (("initializers", initializers), ("inputs", inputs), ("outputs", outputs)):
        _check_unique(f"two {role}", names)
        if "" in names:
            raise InvalidModelError(f"one of the model's {role} has an empty name: name it when exporting.")
    # An input may have an initializer as its default value; every other name is written once.
    _check_unique("two tensors", [*written, *(set(initializers) | set(inputs))])


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidModelError(
                f"{what} of the model have the same name {quote(name)}: names must be unique."
            )
        seen.add(name)


def _check_onnx_rules(proto: onnx.ModelProto) -> None:
    # The checker insists on shapes of outputs, which inference finds out later.
    unshaped = [value.type.tensor_type for value in proto.graph.output if value.type.HasField("tensor_type")]
    unshaped = [tensor for tensor in unshaped if not tensor.HasField("shape")]
    for tensor in unshaped:
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(skeleton(proto) if is_large(proto) else proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(
            f"the model breaks a rule of ONNX: {one_sentence(error)}. Export it again."
        ) from error
    for tensor in unshaped:
        tensor.ClearField("shape")


def _infer_outputs(proto: onnx.ModelProto) -> None:
    """Infers all shapes, bounds them, and writes those of the outputs into the model.

    Declared shapes past the inputs are often stale, so only what inference leaves open is taken from them.
    """
    bare = bare_copy(proto)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    known = _name_free_dimensions(bare.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(
            f"the shapes or types in the model do not fit together: {one_sentence(error)}. Export it again."
        ) from error
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        check_tensor_size(value)
    del proto.graph.value_info[:]
    for declared, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        _merge_shape(declared, found, known)
        check_tensor_size(declared)


def check_tensor_size(value: onnx.ValueInfoProto) -> None:
    """Refuses a tensor whose known dimensions alone make it larger than MAX_TENSOR_BYTES.

    Raises:
        UnsupportedModelError: names the tensor, its shape and its size.
    """
    if not value.type.HasField("tensor_type"):
        return
    tensor = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    try:
        item_bytes = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    except (KeyError, TypeError, ValueError):
        item_bytes = 1
    size_bytes = item_bytes * math.prod(max(1, size) for size in sizes if size is not None)
    if size_bytes > MAX_TENSOR_BYTES:
        shape = ", ".join("?" if size is None else str(size) for size in sizes)
        raise UnsupportedModelError(
            f"tensor {quote(value.name)} [{shape}] would take {size_bytes} bytes; octet takes tensors of at"
            f" most {MAX_TENSOR_BYTES} bytes: check the sizes in the model."
        )


def _name_free_dimensions(graph: onnx.GraphProto) -> frozenset[str]:
    """Names every free dimension of the inputs, so that it is recognised in the outputs; all their names."""
    names: set[str] = set()
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.dim_param = dim.dim_param or f"free dimension {len(names)}"
                names.add(dim.dim_param)
    return frozenset(names)


def _merge_shape(declared: onnx.ValueInfoProto, found: onnx.ValueInfoProto, known: frozenset[str]) -> None:
    if not (declared.type.HasField("tensor_type") and found.type.tensor_type.HasField("shape")):
        return
    shape, old = found.type.tensor_type.shape, declared.type.tensor_type.shape
    same_rank = len(old.dim) == len(shape.dim)
    for axis, dim in enumerate(shape.dim):
        if same_rank and not dim.HasField("dim_value") and dim.dim_param not in known:
            dim.CopyFrom(old.dim[axis])
    declared.type.tensor_type.shape.CopyFrom(shape)
