"""The ONNX file in the form that TensorRT compiles, and what is known of it beforehand."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from engines.calibration.magnitudes import noted_magnitudes
from engines.errors import CompileError, EngineError
from engines.model.external_weights import weights_path
from engines.model.signature import input_specs, output_specs
from engines.model.tensors import TensorSpec
from engines.quantization.half_precision import halve_rest

logger = logging.getLogger(__name__)

DTYPES = frozenset(
    np.dtype(name) for name in ("bool", "float16", "float32", "int8", "int32", "int64", "uint8")
)
"""Element types that TensorRT takes and gives and numpy has: no doubles, no 16-bit or other unsigned integers."""
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model as it is compiled."""

    content: bytes
    # The model's file where weights lie beside it.
    beside: Path | None
    # As the ONNX file names, types and orders them.
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # Outputs that are inputs as they are: TensorRT's engines have no tensor that is both.
    passed: frozenset[str]
    # Names of the nodes that quantize and dequantize.
    quantizers: frozenset[str]
    has_fp8: bool


def prepare(model: Path) -> PreparedModel:
    """Reads a model for compilation.

    Raises:
        CompileError: it is no ONNX file, or has an input or output of a type that TensorRT does not have.
    """
    content = model.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CompileError("the artifact is not an ONNX file; build the version again.") from error
    graph = proto.graph
    try:
        inputs, outputs = input_specs(graph), output_specs(graph)
    except EngineError as error:
        raise CompileError(str(error)) from error
    for spec in (*inputs, *outputs):
        if spec.dtype not in DTYPES:
            raise CompileError(
                f"tensor {spec.name!r} has the element type {spec.dtype.name}, which TensorRT does not take or give; "
                "cast it in the model, floats to float32 and integers to int64."
            )
    passed = frozenset(spec.name for spec in inputs) & {spec.name for spec in outputs}
    quantizers = _named_quantizers(graph)
    _drop_outputs(graph, passed)
    beside = model if weights_path(model).is_file() else None
    return PreparedModel(
        content=(proto if beside else _as_compiled(proto)).SerializeToString(deterministic=True),
        beside=beside,
        inputs=inputs,
        outputs=outputs,
        passed=passed,
        quantizers=quantizers,
        has_fp8=any(tensor.data_type == TensorProto.FLOAT8E4M3FN for tensor in graph.initializer),
    )


def _as_compiled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With its rest in FP16 where it carries the magnitudes that tell what FP16 holds."""
    magnitudes = noted_magnitudes(proto)
    if magnitudes is None:
        return proto
    try:
        return halve_rest(proto, magnitudes)
    except CompileError as error:
        logger.warning("%s", str(error))
        return proto


def _named_quantizers(graph: onnx.GraphProto) -> frozenset[str]:
    """Their names, by which the inspector calls layers; nameless ones get the name of what they compute."""
    names = set()
    for node in graph.node:
        if node.op_type in _QUANTIZERS:
            node.name = node.name or node.output[0]
            names.add(node.name)
    return frozenset(names)


def _drop_outputs(graph: onnx.GraphProto, names: frozenset[str]) -> None:
    kept = [value for value in graph.output if value.name not in names]
    if names:
        del graph.output[:]
        graph.output.extend(kept)
