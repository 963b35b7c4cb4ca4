"""Rewrites matrix products so that they survive 8 bits; the model computes the same as before.

SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): in y = x W, channel k of x is divided by s_k and row k of W
multiplied by it, which evens out the channels of x at the cost of the rows of W:

    s_k = max|x_k|^alpha / max|W_k|^(1 - alpha)

All products that read one tensor share s. Each such group has an alpha of its own, the one whose 8-bit product comes
closest to the exact one on a sample of rows; alpha 0 stands for leaving the group as it is. Channels that no alpha
serves are separated (`engines.quantization.outliers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.calibration.channels import ChannelRange
from engines.formats import ACTIVATION_LEVELS, WeightBits, weight_scales
from engines.model.model import Model, from_proto
from engines.quantization.outliers import outlier_channels
from engines.quantization.placement import CONVOLUTIONS, LayerKind, place
from engines.quantization.rescaling import Rescaler, input_weights

Floats = NDArray[np.float32]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLIPS = (1.0, 0.8, 0.6)
"""Shares of the largest magnitude that the threshold may be: calibration will choose one, so the search allows it."""
SMOOTHING_GAIN = 10**-0.15
"""Smoothing has to lower the squared error by this factor (1.5 dB), or the group stays as it is: channels that are
all alike differ enough in their largest values to gain 1 dB."""
SEPARATION_GAIN = 10**-0.1
"""Separating channels has to lower what smoothing leaves by this factor (1 dB): it costs time at every request."""
_FLOOR = 1e-3
"""Ranges count as at least this share of the median range, so that a channel that the samples left silent is not
blown up when it speaks."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All quantized matrix products that read one tensor."""

    tensor: str
    # Names of MatMul and Gemm nodes.
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is done to one group."""

    # 0 where the activation keeps its channels as they are.
    alpha: float
    # [K], what the channels of the activation are divided by.
    divisors: Floats
    # Channels added in floating point.
    outliers: tuple[int, ...]
    # Sum of squared errors of the products on the sample, before and after.
    error_before: float
    error_after: float

    @property
    def changes(self) -> bool:
        """Whether anything is done at all."""
        return self.alpha > 0 or bool(self.outliers)


def groups(model: Model) -> tuple[Group, ...]:
    """The groups of a prepared model, in graph order; their tensors are what smoothing observes."""
    nodes = {node.name: node for node in model.proto.graph.node}
    found: dict[str, list[str]] = {}
    for weight in place(model).weights:
        node = nodes[weight.use.node]
        if LayerKind(node.op_type) not in CONVOLUTIONS:
            found.setdefault(node.input[0], []).append(node.name)
    return tuple(Group(tensor=tensor, nodes=tuple(names)) for tensor, names in found.items())


def smooth(model: Model, observed: Mapping[str, ChannelRange], *, bits: WeightBits) -> Model:
    """A model that computes the same as `model` and loses less in 8 bits; `model` itself where nothing would help.

    Args:
        model: a prepared FP32 model; not changed.
        observed: by tensor; groups whose tensor is missing stay as they are.
        bits: of the weights that it will be quantized with.
    """
    choices = plan(model, observed, bits=bits)
    return rewrite(model, {tensor: choice for tensor, choice in choices.items() if choice.changes})


def plan(model: Model, observed: Mapping[str, ChannelRange], *, bits: WeightBits) -> dict[str, Choice]:
    """The best choice for each group that was observed, by tensor."""
    nodes = {node.name: node for node in model.proto.graph.node}
    constants = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    return {
        group.tensor: choose(
            observed[group.tensor],
            np.concatenate([_weights(nodes[name], constants) for name in group.nodes], axis=1),
            bits,
        )
        for group in groups(model)
        if group.tensor in observed
    }


def rewrite(model: Model, choices: Mapping[str, Choice]) -> Model:
    """`model` with each choice, by tensor, carried out on its group; `model` itself where there is none."""
    if not choices:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    rescaler = Rescaler(proto.graph)
    for group in groups(model):
        choice = choices.get(group.tensor)
        if choice is not None:
            rescaler.rescale(group.tensor, group.nodes, choice.divisors, choice.outliers)
    rescaler.finish()
    return from_proto(proto)


def choose(observed: ChannelRange, weights: Floats, bits: WeightBits) -> Choice:
    """The alpha, and the outliers to separate, that serve products of `observed` with `weights` [K, N] best."""
    plain = np.ones(len(weights), np.float32)
    before = best_error = product_error(observed, weights, plain, bits)
    best = Choice(alpha=0.0, divisors=plain, outliers=(), error_before=before, error_after=before)
    worst = outlier_channels(observed.absmax, np.abs(weights).max(axis=1))
    for count in sorted({0, min(1, len(worst)), len(worst)}):
        separated = worst[:count]
        rest, rest_weights = _without(observed, weights, separated)
        exact = rest.rows @ rest_weights
        gain = SEPARATION_GAIN if count else SMOOTHING_GAIN
        # Alphas of one count compete on equal terms; the gain is asked of the step to more work.
        candidates = [(0.0, plain)] if count else []
        candidates += [(alpha, smoothing_divisors(rest, rest_weights, alpha)) for alpha in ALPHAS]
        errors = [
            product_error(rest, rest_weights, divisors, bits, exact=exact) for _, divisors in candidates
        ]
        least = int(np.argmin(errors))
        if errors[least] < best_error * gain:
            best_error = errors[least]
            alpha, divisors = candidates[least]
            best = Choice(
                alpha=alpha,
                divisors=_inconspicuous(observed.absmax, divisors, separated),
                outliers=tuple(int(channel) for channel in sorted(separated)),
                error_before=before,
                error_after=best_error,
            )
    return best


def smoothing_divisors(observed: ChannelRange, weights: Floats, alpha: float) -> Floats:
    """The divisor of each channel, [K], with the geometric mean 1: only the ratios between the channels matter."""
    ranges, weight_ranges = _floored(observed.absmax), _floored(np.abs(weights).max(axis=1))
    logarithm = alpha * np.log(ranges) - (1 - alpha) * np.log(weight_ranges)
    divisors: Floats = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return divisors


def product_error(
    observed: ChannelRange,
    weights: Floats,
    divisors: Floats,
    bits: WeightBits,
    *,
    exact: Floats | None = None,
) -> float:
    """Sum of squared errors |X W - Q(X / s) Q(s W)|^2 over the sample, at the best of `CLIPS`.

    Q rounds activations to one scale per tensor and weights [K, N] to one per column. `exact` is X W, for callers
    that have it already.
    """
    scaled = weights * divisors[:, None]
    scales = weight_scales(scaled, 1, bits)
    codes = np.rint(scaled / scales)
    rows = observed.rows / divisors
    if exact is None:
        exact = observed.rows @ weights
    largest = float((observed.absmax / divisors).max(initial=0.0)) or 1.0
    errors = []
    for clip in CLIPS:
        step = np.float32(clip * largest / ACTIVATION_LEVELS)
        coarse = np.clip(np.rint(rows / step), -ACTIVATION_LEVELS - 1, ACTIVATION_LEVELS)
        difference = exact - (coarse @ codes) * (step * scales)
        errors.append(float(np.vdot(difference, difference)))
    return min(errors)


def _without(
    observed: ChannelRange, weights: Floats, channels: NDArray[np.int64]
) -> tuple[ChannelRange, Floats]:
    """The product without some channels, their places filled with 0."""
    if not len(channels):
        return observed, weights
    absmax, rows, kept = observed.absmax.copy(), observed.rows.copy(), weights.copy()
    absmax[channels], rows[:, channels], kept[channels] = 0, 0, 0
    return ChannelRange(absmax=absmax, rows=rows), kept


def _inconspicuous(absmax: Floats, divisors: Floats, channels: NDArray[np.int64]) -> Floats:
    """Divisors that bring separated channels, which nothing reads in 8 bits, into the range of the others."""
    if not len(channels):
        return divisors
    others = np.delete(absmax / divisors, channels)
    typical = float(np.median(others[others > 0])) if (others > 0).any() else 1.0
    brought = divisors.copy()
    brought[channels] = absmax[channels] / np.float32(typical)
    return brought


def _floored(ranges: Floats) -> NDArray[np.float64]:
    used = ranges[ranges > 0]
    typical = float(np.median(used)) if len(used) else 1.0
    return np.maximum(ranges.astype(np.float64), _FLOOR * typical)


def _weights(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Floats:
    """[K, N]"""
    return input_weights(node, np.asarray(numpy_helper.to_array(constants[node.input[1]]), np.float32))
