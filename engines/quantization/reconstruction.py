"""Finds the 8-bit weights of every layer that reproduce its FP32 outputs best on the calibration rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.calibration.moments import LONGEST_ROW, Layer, Moments, row_length
from engines.formats import Codes, WeightGrid, along
from engines.model.model import Model
from engines.options import Precision
from engines.quantization.placement import LayerKind, Placement
from engines.quantization.rounding import compensated, rounded
from engines.quantization.scheme import scheme_of
from engines.quantization.unfolding import Unfolding, unfold
from engines.quantization.unsigned import non_negative


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The weights of one layer as they are stored."""

    # In the shape of the weights that they replace.
    codes: Codes
    # [M], along the axis of the output channels.
    scales: NDArray[np.float32]
    # [M], added to the layer's bias; None for a layer that has no place for one.
    bias_shift: NDArray[np.float32] | None


def reconstructible(
    model: Model,
    placement: Placement,
    thresholds: Mapping[str, float],
    *,
    unsigned: bool,
    precision: Precision = Precision.INT8,
) -> list[Layer]:
    """The layers of a placement whose weights can be fitted to their inputs, with their input quantizers.

    `unsigned` says that the engine will have non-negative INT8 activations in UINT8
    (`engines.quantization.unsigned`); it does not concern FP8.
    """
    grid_of = scheme_of(precision).activation_grid
    positive = non_negative(model.proto.graph) if unsigned else {}
    nodes = {node.name: node for node in model.proto.graph.node}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}
    layers = []
    for weight in placement.weights:
        node = nodes[weight.use.node]
        unfolding = unfold(node, shapes[weight.initializer])
        if unfolding is None or row_length(unfolding) > LONGEST_ROW:
            continue
        tensor = node.input[0]
        grid = grid_of(thresholds[tensor], unsigned=positive.get(tensor, False))
        layers.append(Layer(node=node.name, tensor=tensor, grid=grid, unfolding=unfolding))
    return layers


def reconstruct(
    model: Model, layers: list[Layer], moments: Mapping[str, Moments], grid: WeightGrid
) -> dict[str, LayerWeights]:
    """Weights by node, each layer on its own; not of layers whose inputs are so large that their squares overflow."""
    nodes = {node.name: node for node in model.proto.graph.node}
    constants = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    return {
        layer.node: _reconstruct(
            nodes[layer.node],
            _values(nodes[layer.node], constants),
            layer.unfolding,
            moments[layer.node],
            grid,
        )
        for layer in layers
        if layer.node in moments and moments[layer.node].finite
    }


def _values(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> NDArray[np.floating]:
    return np.asarray(numpy_helper.to_array(constants[node.input[1]]), np.float64)


def _reconstruct(
    node: onnx.NodeProto,
    weights: NDArray[np.floating],
    unfolding: Unfolding,
    moments: Moments,
    grid: WeightGrid,
) -> LayerWeights:
    biased = node.op_type in (LayerKind.CONV, LayerKind.GEMM)
    fitted = moments.centred() if biased else moments
    codes, scales, shifts = [], [], []
    for group, matrix in enumerate(unfolding.matrix(weights)):
        target = compensated(matrix.astype(np.float64), fitted.gram[group], fitted.cross[group])
        found = rounded(target, fitted.gram[group], grid)
        coarse = (grid.decode(found.codes) * along(found.scales, 0, 2)).astype(np.float64)
        mean, coarse_mean = moments.exact[group] / moments.rows, moments.coarse[group] / moments.rows
        codes.append(found.codes)
        scales.append(found.scales)
        shifts.append(matrix @ mean - coarse @ coarse_mean)
    stored = unfolding.stored(np.stack(codes))
    return LayerWeights(
        codes=stored,
        scales=np.concatenate(scales),
        bias_shift=np.concatenate(shifts).astype(np.float32) if biased else None,
    )
