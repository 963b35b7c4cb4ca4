"""Convolutions and matrix products as one thing: rows times a matrix.

A layer with weights computes y = x W^T + b for many rows x of its input: a matrix product for every vector along
the last axis, a convolution for every patch under its kernel (im2col), each group of channels on its own. Written
so, one method of rounding serves them all.

    rows     [groups, rows, K], what the layer multiplies with its weights
    weights  [groups, M, K], M output channels a group
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper

from engines.quantization.placement import LayerKind

Floats = NDArray[np.float32]
Element = TypeVar("Element", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Unfolding:
    """How one layer's input and weights become matrices."""

    kind: LayerKind
    # Shape of the weights as the model stores them.
    shape: tuple[int, ...]
    transposed: bool = False
    groups: int = 1
    strides: tuple[int, ...] = ()
    # Begins of all spatial axes, then ends.
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    @property
    def window(self) -> Hashable:
        """What decides which rows are made of an input: unfoldings that have it in common make the same."""
        if self.kind is not LayerKind.CONV:
            return None
        return self.groups, self.shape[1:], self.strides, self.pads, self.dilations

    def rows(self, values: Floats, positions: NDArray[np.int64] | None = None) -> Floats:
        """The rows [groups, rows, K] of a batch of the layer's input; of a convolution, only some `positions`.

        Args:
            values: [batch, channels, ...] for a convolution, [..., K] for a matrix product.
            positions: indices of output positions, counted over the batch and all spatial axes; None means all.
        """
        if self.kind is not LayerKind.CONV:
            flat = values.reshape(-1, values.shape[-1])
            return (flat if positions is None else flat[positions])[None]
        axes = tuple(range(2, values.ndim))
        count = len(axes)
        edges = [(0, 0), (0, 0), *((self.pads[axis], self.pads[axis + count]) for axis in range(count))]
        reach = [(size - 1) * step + 1 for size, step in zip(self.shape[2:], self.dilations, strict=True)]
        windows = sliding_window_view(np.pad(values, edges), reach, axis=axes)
        thinned = (slice(None), slice(None), *(slice(None, None, step) for step in self.strides))
        windows = windows[(*thinned, *(slice(None, None, step) for step in self.dilations))]
        # [batch, positions..., channels, kernel...]
        patches = np.moveaxis(windows, 1, 1 + count)
        places = patches.shape[: 1 + count]
        if positions is None:
            positions = np.arange(np.prod(places))
        picked = patches[np.unravel_index(positions, places)]
        grouped = picked.reshape(len(positions), self.groups, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))

    def positions(self, values: Floats) -> int:
        """How many rows a batch of the layer's input has."""
        if self.kind is not LayerKind.CONV:
            return int(values.size // values.shape[-1])
        count = values.ndim - 2
        places = int(values.shape[0])
        for axis in range(count):
            padded = values.shape[2 + axis] + self.pads[axis] + self.pads[axis + count]
            reach = (self.shape[2 + axis] - 1) * self.dilations[axis] + 1
            places *= (padded - reach) // self.strides[axis] + 1
        return places

    def matrix(self, weights: NDArray[np.floating]) -> NDArray[np.floating]:
        """Stored weights as [groups, M, K]."""
        if self.kind is LayerKind.CONV:
            return weights.reshape(self.groups, self.shape[0] // self.groups, -1)
        return (weights if self.transposed else weights.T)[None]

    def stored(self, matrix: NDArray[Element]) -> NDArray[Element]:
        """The inverse of `matrix`."""
        if self.kind is LayerKind.CONV:
            return matrix.reshape(self.shape)
        return np.ascontiguousarray(matrix[0] if self.transposed else matrix[0].T)


def unfold(node: onnx.NodeProto, shape: tuple[int, ...]) -> Unfolding | None:
    """How the layer `node`, with weights of `shape`, unfolds; None for one that does not (ConvTranspose)."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    match node.op_type:
        case LayerKind.MATMUL:
            return Unfolding(kind=LayerKind.MATMUL, shape=shape)
        case LayerKind.GEMM:
            return Unfolding(kind=LayerKind.GEMM, shape=shape, transposed=bool(attributes.get("transB", 0)))
        case LayerKind.CONV if attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID"):
            axes = len(shape) - 2
            return Unfolding(
                kind=LayerKind.CONV,
                shape=shape,
                groups=int(attributes.get("group", 1)),
                strides=tuple(attributes.get("strides", [1] * axes)),
                pads=tuple(attributes.get("pads", [0] * (2 * axes))),
                dilations=tuple(attributes.get("dilations", [1] * axes)),
            )
        case _:
            return None
