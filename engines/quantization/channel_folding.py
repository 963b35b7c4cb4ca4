"""Graph surgery for equalisation: divides the channels of a convolution's input and multiplies its weights by as much.

The division is folded into what makes the activation where that is exact and nothing else reads it: the output
channels of a convolution, the affine part of a BatchNormalization, and behind these what commutes with a positive
factor per channel, ReLU and pooling. Otherwise it is one multiplication by a constant in front of the convolutions. A
bound that all channels share (ReLU6) is such a case: a bound per channel costs more than the multiplication, 9 against
6.9 ms on OpenVINO 2026.4 where the net takes 6.0.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.formats import along
from engines.quantization.graph_editing import Fold, GraphEditor
from engines.quantization.placement import LayerKind

Floats = NDArray[np.float32]

_COMMUTING = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
)
"""Operators whose first output takes over a positive factor per channel of their first input."""


class ChannelFolder(GraphEditor):
    """Edits one graph in place."""

    suffix = "_equalised"

    def foldable(self, tensor: str, channels: int, readers: int) -> bool:
        """Whether `tensor` with so many channels, read by so many convolutions, can be divided at no cost."""
        return self._folds(tensor, channels, readers) is not None

    def equalise(self, tensor: str, nodes: Sequence[str], divisors: Floats) -> None:
        """Divides the channels of `tensor` on its way to the convolutions `nodes`, given in graph order."""
        factor = (1 / divisors).astype(np.float32)
        folds = self._folds(tensor, len(factor), len(nodes))
        source = tensor
        if folds is None:
            rank = len(self._value(self._nodes[nodes[0]], 1).shape)
            constant = self._constant(f"{tensor}_divisors", along(factor, 0, rank - 1))
            source = self._insert(
                "Mul", [tensor, constant], f"{tensor}_equalised", like=tensor, before=nodes[0]
            )
        self._apply(folds or (), factor)
        for name in nodes:
            node = self._nodes[name]
            self._replace(node, 1, _multiplied(node, self._value(node, 1), divisors))
            node.input[0] = source

    def _folds(self, tensor: str, channels: int, readers: int) -> list[Fold] | None:
        """The constants to change for `tensor`, read `readers` times, to come out scaled; None where none do."""
        node = self._producer(tensor, readers)
        while node is not None and node.op_type in _COMMUTING:
            node = self._producer(node.input[0], 1)
        if node is None:
            return None
        match node.op_type:
            case "BatchNormalization":
                folds = [Fold(node=node, index=index, apply=np.multiply) for index in (1, 2)]
            case LayerKind.CONV:
                folds = [Fold(node=node, index=1, apply=_scale_outputs), *_bias(node)]
            case LayerKind.CONV_TRANSPOSE:
                folds = [Fold(node=node, index=1, apply=_scale_columns), *_bias(node)]
            case _:
                return None
        return folds if all(self._fits(fold, channels) for fold in folds) else None

    def _producer(self, tensor: str, readers: int) -> onnx.NodeProto | None:
        """What computes `tensor` for `readers` readers and nobody else."""
        node = self._producers.get(tensor)
        return (
            node if node is not None and self._uses[tensor] == readers and tensor == node.output[0] else None
        )

    def _fits(self, fold: Fold, channels: int) -> bool:
        """Whether it is a constant with that many channels: groups of a ConvTranspose share theirs."""
        shape = self._shape(fold.node, fold.index)
        transposed = fold.apply is _scale_columns
        return shape is not None and shape[int(transposed)] == channels


def input_channels(node: onnx.NodeProto, weights: Floats) -> Floats:
    """Stored weights as [M, C / groups, taps]: output channels, the input channels that each one sums, the kernel."""
    turned = weights.swapaxes(0, 1) if node.op_type == LayerKind.CONV_TRANSPOSE else weights
    return turned.reshape(*turned.shape[:2], -1)


def per_weight(divisors: Floats, outputs: int, inputs: int) -> Floats:
    """The divisor of the input channel that each weight [M, C / groups, taps] meets, [M, C / groups, 1]."""
    grouped = divisors.reshape(-1, inputs)
    return np.repeat(grouped, outputs // len(grouped), axis=0)[:, :, None]


def _multiplied(node: onnx.NodeProto, weights: Floats, divisors: Floats) -> Floats:
    """Stored weights, those of input channel k multiplied by divisor k."""
    if node.op_type == LayerKind.CONV_TRANSPOSE:
        return weights * along(divisors, 0, weights.ndim)
    factors = per_weight(divisors, *weights.shape[:2])
    return weights * factors.reshape(*factors.shape[:2], *([1] * (weights.ndim - 2)))


def _bias(node: onnx.NodeProto) -> list[Fold]:
    return [Fold(node=node, index=2, apply=np.multiply)] if len(node.input) > 2 and node.input[2] else []


def _scale_outputs(weights: Floats, factor: Floats) -> Floats:
    return weights * along(factor, 0, weights.ndim)


def _scale_columns(weights: Floats, factor: Floats) -> Floats:
    return weights * along(factor, 1, weights.ndim)
