"""What a model says of itself that arrives quantized: by what it was, which layers, and how."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from engines.errors import UnsupportedModelError
from engines.model.model import Model
from engines.model.naming import quote
from engines.options import Precision
from engines.quantization.pairs import MOVING
from engines.quantization.placement import LayerKind
from engines.quantization.quantizers import DEQUANTIZE, Quantizer, read_quantizers


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A model that was quantized before it came."""

    # The tool that wrote the file, as it calls itself, or None where the file does not say.
    producer: str | None
    # Its 8-bit type; None where octet would not build from it.
    precision: Precision | None
    # Names of the layers that multiply dequantized activations by dequantized weights.
    layers: tuple[str, ...]
    # The layers that multiply floats: their names, and their operators.
    floating: Mapping[str, str]
    # Names of the Q and DQ nodes that are not symmetric INT8.
    asymmetric: tuple[str, ...]

    def describe(self) -> str:
        """For summaries and messages, for example `the model arrived quantized by pytorch 2.13.0`."""
        return f"the model arrived quantized by {self.producer or 'a tool that it does not name'}"


def describe_arrived(uploaded: onnx.ModelProto, prepared: Model) -> Arrived:
    """Describes a quantized model whose quantizers octet takes.

    Args:
        uploaded: the file as it came, which names its producer.
        prepared: the same model, prepared.

    Raises:
        UnsupportedModelError: a quantizer cannot be compiled as it is meant, or they are of several types.
    """
    graph = prepared.proto.graph
    quantizers = read_quantizers(graph)
    quantized, floating = _layers(graph)
    return Arrived(
        producer=producer(uploaded),
        precision=_precision(quantizers),
        layers=quantized,
        floating=floating,
        asymmetric=tuple(name for name, quantizer in quantizers.items() if not quantizer.symmetric),
    )


def _precision(quantizers: Mapping[str, Quantizer]) -> Precision:
    """The 8-bit type of all quantizers; biases in 32 bits go with any."""
    floats = [name for name, quantizer in quantizers.items() if quantizer.is_float8]
    integers = [
        name
        for name, quantizer in quantizers.items()
        if not quantizer.is_float8 and quantizer.data_type != TensorProto.INT32
    ]
    if floats and integers:
        raise UnsupportedModelError(
            f"the model has quantizers of FP8 ({quote(floats[0])}) and of INT8 ({quote(integers[0])}); octet serves"
            " models in one of them: export it in one, or upload the FP32 model and have octet quantize it."
        )
    return Precision.FP8 if floats else Precision.INT8


def producer(proto: onnx.ModelProto) -> str | None:
    """Name and version of the tool that wrote a model, on one line and short."""
    words = " ".join(f"{proto.producer_name} {proto.producer_version}".split())
    return "".join(char for char in words if char.isprintable())[:80] or None


def _layers(graph: onnx.GraphProto) -> tuple[tuple[str, ...], dict[str, str]]:
    """The layers with kernels of 8 bits: those that read both operands from a DQ, and the others."""
    makers = {name: node for node in graph.node for name in node.output}

    def dequantized(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in MOVING:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == DEQUANTIZE

    kinds = {kind.value for kind in LayerKind}
    layers = [node for node in graph.node if node.op_type in kinds]
    quantized = {node.name for node in layers if all(dequantized(name) for name in node.input[:2])}
    return (
        tuple(node.name for node in layers if node.name in quantized),
        {node.name: node.op_type for node in layers if node.name not in quantized},
    )
