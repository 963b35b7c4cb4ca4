"""Rewrites convolutions so that they survive 8 bits; the model computes the same as before.

An activation has one scale, and the scale of a net whose channels reach very different magnitudes serves only the
largest of them: what breaks depthwise nets. Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721) divides
channel k of the activation by s_k, at the convolution that makes it, and multiplies the weights that meet it. Weights
have a scale per output channel here, so the first costs nothing, and the second nothing in a depthwise convolution.
In any other it coarsens the weights of the channels with the smaller products, so how far to go is searched for, as
in smoothing:

    s_k = max|x_k|^alpha / max|w_k|^(1 - alpha)

where w are the weights of every output channel relative to its largest, which is 1 in a depthwise convolution. All
convolutions that read one tensor share s; a tensor that others read too is left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.calibration.channels import ChannelRange
from engines.formats import ACTIVATION_LEVELS, WeightBits, along, dequantize, quantize_weights, weight_scales
from engines.model.model import Model, from_proto
from engines.preparation.tidying import use_counts
from engines.quantization.channel_folding import ChannelFolder, input_channels, per_weight
from engines.quantization.placement import CONVOLUTIONS, LayerKind, place
from engines.quantization.smoothing import CLIPS, smoothing_divisors

Floats = NDArray[np.float32]

CHANNEL_AXIS = 1
"""What `observe_channels` needs to know of a convolution's input."""
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FOLDED_GAIN = 10**-0.1
"""Equalising has to lower the squared error by this factor (1 dB) where it costs nothing: channels that are all alike
differ enough in their largest values to promise less than that, and then deliver nothing."""
MULTIPLIED_GAIN = 10**-0.3
"""The same (3 dB) where it costs a multiplication: on OpenVINO 3 to 15% of the time of a net of inverted residuals."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All readers of one tensor, every one a quantized convolution."""

    tensor: str
    # Names of Conv and ConvTranspose nodes, in graph order.
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is done to one group."""

    # 0 where the activation keeps its channels as they are.
    alpha: float
    # [C], what the channels of the activation are divided by.
    divisors: Floats
    # Squared error of one output position, summed over the outputs of all convolutions, before and after.
    error_before: float
    error_after: float


def groups(model: Model) -> tuple[Group, ...]:
    """The groups of a prepared model, in graph order; their tensors are what equalisation observes, along axis 1."""
    nodes = {node.name: node for node in model.proto.graph.node}
    uses = use_counts(model.proto.graph)
    found: dict[str, list[str]] = {}
    for weight in place(model).weights:
        node = nodes[weight.use.node]
        if LayerKind(node.op_type) in CONVOLUTIONS:
            found.setdefault(node.input[0], []).append(node.name)
    return tuple(
        Group(tensor=tensor, nodes=tuple(names))
        for tensor, names in found.items()
        if uses[tensor] == len(names)
    )


def equalise(model: Model, observed: Mapping[str, ChannelRange], *, bits: WeightBits) -> Model:
    """A model that computes the same as `model` and loses less in 8 bits; `model` itself where nothing would help.

    Args:
        model: a prepared FP32 model; not changed.
        observed: by tensor, along axis 1; groups whose tensor is missing stay as they are.
        bits: of the weights that it will be quantized with.
    """
    return rewrite(model, plan(model, observed, bits=bits))


def plan(model: Model, observed: Mapping[str, ChannelRange], *, bits: WeightBits) -> dict[str, Choice]:
    """By tensor, the best choice for each group that was observed and that is worth its price."""
    graph = model.proto.graph
    nodes = {node.name: node for node in graph.node}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folder = ChannelFolder(graph)
    chosen = {}
    for group in groups(model):
        if group.tensor not in observed:
            continue
        seen = observed[group.tensor]
        choice = choose(seen, [_weights(nodes[name], constants) for name in group.nodes], bits)
        free = folder.foldable(group.tensor, len(seen.absmax), len(group.nodes))
        if choice.error_after < choice.error_before * (FOLDED_GAIN if free else MULTIPLIED_GAIN):
            chosen[group.tensor] = choice
    return chosen


def rewrite(model: Model, choices: Mapping[str, Choice]) -> Model:
    """`model` with each choice, by tensor, carried out on its group; `model` itself where there is none."""
    if not choices:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    folder = ChannelFolder(proto.graph)
    for group in groups(model):
        if group.tensor in choices:
            folder.equalise(group.tensor, group.nodes, choices[group.tensor].divisors)
    folder.finish()
    return from_proto(proto)


def choose(observed: ChannelRange, weights: Sequence[Floats], bits: WeightBits) -> Choice:
    """The alpha that serves convolutions of `observed` with `weights`, each [M, C / groups, taps], best."""
    plain = np.ones(len(observed.absmax), np.float32)
    before = convolution_error(observed, weights, plain, bits)
    best = Choice(alpha=0.0, divisors=plain, error_before=before, error_after=before)
    shares = np.stack([_shares(one, len(plain)) for one in weights], axis=1)
    for alpha in ALPHAS:
        divisors = smoothing_divisors(observed, shares, alpha)
        error = convolution_error(observed, weights, divisors, bits)
        if error < best.error_after:
            best = Choice(alpha=alpha, divisors=divisors, error_before=before, error_after=error)
    return best


def convolution_error(
    observed: ChannelRange, weights: Sequence[Floats], divisors: Floats, bits: WeightBits
) -> float:
    """Expected squared error of one output position, summed over the output channels, at the best of `CLIPS`.

    The rounding errors of activations and weights count as independent of each other and between channels, so the
    error is the sum over channels of E[dx_k^2] |W_k|^2 + E[x_k^2] |dW_k|^2, which needs no convolution.

    Args:
        observed: range and rows of the input.
        weights: of every convolution that reads it, [M, C / groups, taps].
        divisors: [C]
        bits: of the weights.
    """
    channels = len(divisors)
    power = np.mean(observed.rows.astype(np.float64) ** 2, axis=0)
    energy, from_weights = np.zeros(channels), 0.0
    for one in weights:
        energy += _per_channel(one.astype(np.float64) ** 2, channels)
        from_weights += float(power @ _per_channel(_rounding_errors(one, divisors, bits) ** 2, channels))
    rows = observed.rows / divisors
    largest = float((observed.absmax / divisors).max(initial=0.0)) or 1.0
    from_rows = []
    for clip in CLIPS:
        step = np.float32(clip * largest / ACTIVATION_LEVELS)
        coarse = np.clip(np.rint(rows / step), -ACTIVATION_LEVELS - 1, ACTIVATION_LEVELS) * step
        errors = np.mean((rows - coarse).astype(np.float64) ** 2, axis=0) * divisors.astype(np.float64) ** 2
        from_rows.append(float(errors @ energy))
    return min(from_rows) + from_weights


def _rounding_errors(weights: Floats, divisors: Floats, bits: WeightBits) -> NDArray[np.float64]:
    """What rounding weights that were multiplied by the divisors takes from them, in units of the original ones."""
    factors = per_weight(divisors, *weights.shape[:2])
    scaled = weights * factors
    scales = weight_scales(scaled, 0, bits)
    rounded = dequantize(quantize_weights(scaled, scales, 0, bits), along(scales, 0, 3))
    return ((rounded - scaled) / factors).astype(np.float64)


def _shares(weights: Floats, channels: int) -> Floats:
    """[C], the largest weight that meets each input channel, as a share of the largest of its output channel."""
    largest = np.abs(weights).max(axis=2)
    relative = largest / np.maximum(largest.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    grouped = relative.reshape(channels // weights.shape[1], -1, weights.shape[1])
    return np.asarray(grouped.max(axis=1).reshape(channels), np.float32)


def _per_channel(values: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Sums of values [M, C / groups, taps] over all that meets one input channel, [C]."""
    grouped = values.sum(axis=2).reshape(channels // values.shape[1], -1, values.shape[1])
    return np.asarray(grouped.sum(axis=1).reshape(channels))


def _weights(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Floats:
    return input_channels(node, np.asarray(numpy_helper.to_array(constants[node.input[1]]), np.float32))
