"""Which tensors of a model are quantized: TensorRT's rules for explicit quantization.

Sources: NVIDIA, "Working with Quantized Types" (TensorRT documentation), and the placement of NVIDIA's Model
Optimizer. A layer runs in INT8 when all that it multiplies comes through Q/DQ pairs, so:

    Conv, ConvTranspose, Gemm and MatMul with constant weights: the activation, per tensor, and the weights, per
    output channel. Their bias and their output stay floating. Convolutions of any size, the first one included:
    on OpenVINO a net of three 3x3 convolutions with 64 channels took 32 ms so and 38 ms with a floating first one
    (3 input channels), at the same accuracy; with 8 channels 0.54 and 0.67 ms.
    A residual Add behind a convolution: only the other input. The convolution's own output reaches the Add
    inside the fused kernel and never becomes 8 bits. In transformers the sums carry outliers from layer to layer,
    so they stay floating (8 bits there cost ViT-B 80 points of top-1).
    Concat in front of layers: its inputs too, with the scale of its output, so that it joins 8-bit tensors
    (`engines.quantization.concatenation`).
    The products of queries and keys, where asked for: both factors, as they are when they reach the product, scaled
    and transposed. Softmax, and its product with the values, stay floating: with one symmetric scale for each
    factor that product alone limits a sentence encoder to 26 dB, and queries by keys to 40 dB. On OpenVINO
    2026.4 three attention layers of width 384 took 60 ms with the scores' products in 8 bits and 79 ms without at
    256 tokens, and the same time at 64 (batches of 8), for 0.2 to 0.6 dB.
    LayerNormalization and everything else stay as they are: pooling and reshaping commute with DQ, and the runtime
    moves the pairs across them by itself.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from engines.model.model import Model
from engines.model.wiring import int_attribute
from engines.options import Precision
from engines.quantization.attention import score_products
from engines.quantization.concatenation import SharedScale, shared_scales
from engines.quantization.float8_kernels import float8_convolution_reason
from engines.quantization.residuals import residual_inputs

SMALLEST_MATRIX = 16
"""Matrix products with fewer rows or columns of weights stay floating: 8-bit kernels work on tiles of 16 and pad
the rest, so nothing would be won."""

LEFT_FLOATING = "left floating to keep the contract"
"""The reason that excluded nodes are skipped with."""


class LayerKind(enum.StrEnum):
    """Operators that have 8-bit kernels."""

    CONV = "Conv"
    CONV_TRANSPOSE = "ConvTranspose"
    GEMM = "Gemm"
    MATMUL = "MatMul"


_WITHOUT_KERNEL = {
    "Einsum": "it is no plain product with constant weights",
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "recurrent layers have no 8-bit kernels"),
}
"""Other operators that multiply, and why they stay floating."""

CONVOLUTIONS = frozenset({LayerKind.CONV, LayerKind.CONV_TRANSPOSE})


@dataclass(frozen=True, kw_only=True)
class Use:
    """One input of one node."""

    # Name of the node; prepared models have unique ones.
    node: str
    # Which of its inputs.
    index: int


@dataclass(frozen=True, kw_only=True)
class QuantizedActivation:
    """A tensor that passes through one Q/DQ pair on its way to `uses`; other consumers keep reading floats."""

    tensor: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """Constant weights stored as INT8, dequantized for one node."""

    initializer: str
    use: Use
    # The output channels: each has a scale of its own.
    axis: int


@dataclass(frozen=True, kw_only=True)
class SkippedLayer:
    """A layer that stays floating."""

    node: str
    operator: str
    # A clause for the report, for example "its weights are not constant".
    reason: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Every quantizer of a model."""

    activations: tuple[QuantizedActivation, ...]
    weights: tuple[QuantizedWeight, ...]
    skipped: tuple[SkippedLayer, ...]
    # Activations that must have one scale (`engines.quantization.scales` sees to it); no tensor is in two sets.
    shared: tuple[SharedScale, ...] = ()


def place(
    model: Model,
    *,
    exclude: frozenset[str] = frozenset(),
    precision: Precision = Precision.INT8,
    attention: bool = False,
) -> Placement:
    """Chooses what is quantized in a prepared model (nodes named, constants as initializers).

    Args:
        model: the prepared model.
        exclude: names of nodes that stay floating whatever the rules say of them. No tensor is quantized for
            that which would not be without it.
        precision: the 8-bit type; FP8 has kernels for fewer convolutions.
        attention: whether the products of queries and keys are quantized as well.
    """
    graph = model.proto.graph
    scores = score_products(graph) if attention else frozenset[str]()
    placement = _Placer(graph, precision, scores).place()
    if exclude:
        placement = _without(placement, exclude, graph)
    # Last, because it depends on what is quantized behind a Concat.
    return _with_concats(placement, graph)


class _Placer:
    def __init__(self, graph: onnx.GraphProto, precision: Precision, scores: frozenset[str]) -> None:
        """`scores` are names of nodes that multiply two activations and may do so in 8 bits."""
        self._graph = graph
        self._precision = precision
        self._constants: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.input, *graph.output, *graph.value_info)
        }
        self._scores = scores
        self._convolutions: set[str] = set()
        self._uses: dict[str, list[Use]] = {}
        self._weights: list[QuantizedWeight] = []
        self._skipped: list[SkippedLayer] = []

    def place(self) -> Placement:
        for node in self._graph.node:
            if node.op_type in LayerKind.__members__.values():
                self._place_layer(node)
            elif reason := _WITHOUT_KERNEL.get(node.op_type):
                self._skip(node, reason)
        # Second, because a residual is best a tensor that some layer has quantized already.
        for node, index in residual_inputs(self._graph, self._convolutions, self._uses.keys()):
            self._use(node, index)
        return Placement(
            activations=tuple(
                QuantizedActivation(tensor=tensor, uses=tuple(uses)) for tensor, uses in self._uses.items()
            ),
            weights=tuple(self._weights),
            skipped=tuple(self._skipped),
        )

    def _place_layer(self, node: onnx.NodeProto) -> None:
        if node.name in self._scores and all(self._is_float32(tensor) for tensor in node.input):
            self._use(node, 0)
            self._use(node, 1)
            return
        reason = self._reason_to_skip(node)
        if reason is not None:
            self._skip(node, reason)
            return
        if node.op_type in CONVOLUTIONS:
            self._convolutions.add(node.name)
        self._use(node, 0)
        use = Use(node=node.name, index=1)
        self._weights.append(QuantizedWeight(initializer=node.input[1], use=use, axis=output_axis(node)))

    def _reason_to_skip(self, node: onnx.NodeProto) -> str | None:
        activation, weights = node.input[0], self._constants.get(node.input[1])
        if weights is None:
            left = activation in self._constants
            return "its constant stands on the left" if left else "its weights are not constant"
        if not self._is_activation(activation):
            return "its input is constant"
        if weights.data_type != TensorProto.FLOAT:
            return "it does not compute in float32"
        if node.op_type not in CONVOLUTIONS:
            return _matrix_reason(node, weights)
        float8 = self._precision is Precision.FP8
        return _convolution_reason(node) or (float8_convolution_reason(node, weights) if float8 else None)

    def _skip(self, node: onnx.NodeProto, reason: str) -> None:
        self._skipped.append(SkippedLayer(node=node.name, operator=node.op_type, reason=reason))

    def _is_float32(self, tensor: str) -> bool:
        """Whether it is an activation that is known to be float32."""
        return self._types.get(tensor) == TensorProto.FLOAT

    def _is_activation(self, tensor: str) -> bool:
        return bool(tensor) and tensor not in self._constants

    def _use(self, node: onnx.NodeProto, index: int) -> None:
        self._uses.setdefault(node.input[index], []).append(Use(node=node.name, index=index))


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of the weights that counts output channels.

    ConvTranspose's weights are [C, M, ...].
    """
    match node.op_type:
        case LayerKind.CONV:
            return 0
        case LayerKind.GEMM:
            return 0 if int_attribute(node, "transB", 0) else 1
        case _:
            return 1


def tensors(placement: Placement) -> Iterator[str]:
    """The activations to observe: inputs of layers in graph order, then those of residual sums and of Concats."""
    return (activation.tensor for activation in placement.activations)


def _convolution_reason(node: onnx.NodeProto) -> str | None:
    """Why a convolution with constant weights stays floating, if it does."""
    groups = int_attribute(node, "group", 1)
    if node.op_type == LayerKind.CONV_TRANSPOSE and groups > 1:
        # [C, M / groups, ...]: one scale would serve a channel of every group, and OpenVINO computes it in floats.
        return f"it is a transposed convolution in {groups} groups, which has no 8-bit kernel"
    return None


def _without(placement: Placement, exclude: frozenset[str], graph: onnx.GraphProto) -> Placement:
    """The placement without the uses of the excluded nodes, and without tensors that nothing is left to use."""
    kept = {
        activation.tensor: tuple(use for use in activation.uses if use.node not in exclude)
        for activation in placement.activations
    }
    left = {use.node for activation in placement.activations for use in activation.uses} & exclude
    skipped = (
        SkippedLayer(node=node.name, operator=node.op_type, reason=LEFT_FLOATING)
        for node in graph.node
        if node.name in left
    )
    return Placement(
        activations=tuple(
            QuantizedActivation(tensor=tensor, uses=uses) for tensor, uses in kept.items() if uses
        ),
        weights=tuple(weight for weight in placement.weights if weight.use.node not in exclude),
        skipped=(*placement.skipped, *skipped),
    )


def _with_concats(placement: Placement, graph: onnx.GraphProto) -> Placement:
    """The placement, and the inputs of the Concats that everything behind reads quantized."""
    uses = {activation.tensor: list(activation.uses) for activation in placement.activations}
    quantized = {(use.node, use.index) for found in uses.values() for use in found}
    shared = shared_scales(graph, quantized)
    joining = {name for scale in shared for name in scale.nodes}
    for node in graph.node:
        if node.name in joining:
            for index, tensor in enumerate(node.input):
                uses.setdefault(tensor, []).append(Use(node=node.name, index=index))
    activations = (QuantizedActivation(tensor=tensor, uses=tuple(found)) for tensor, found in uses.items())
    return replace(placement, activations=tuple(activations), shared=shared)


def _matrix_reason(node: onnx.NodeProto, weights: TensorProto) -> str | None:
    """Why a matrix product with constant weights stays floating, if it does."""
    if len(weights.dims) != 2:
        return f"its weights have {len(weights.dims)} dimensions"
    if int_attribute(node, "transA", 0):
        return "its input is transposed"
    if min(weights.dims) < SMALLEST_MATRIX:
        return f"its weights are too small ({weights.dims[0]} x {weights.dims[1]}) to gain from 8 bits"
    return None
