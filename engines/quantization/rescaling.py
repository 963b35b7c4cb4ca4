"""Graph surgery for smoothing: divides the channels of an activation and multiplies the weights that meet them.

The division is folded into what makes the activation where that is exact and nothing else reads it: the affine part
of a LayerNormalization, constant factors and addends, the columns of a matrix product, ReLU between them. Otherwise it
is one multiplication by a constant in front of the group, which runtimes fuse into the quantizer.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.model.wiring import float_attribute, int_attribute
from engines.quantization.graph_editing import Fold, GraphEditor
from engines.quantization.placement import LayerKind
from engines.quantization.recomputed import chain, column

Floats = NDArray[np.float32]


class Rescaler(GraphEditor):
    """Edits one graph in place."""

    suffix = "_smoothed"

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self._order = {node.name: place for place, node in enumerate(graph.node)}
        # The nodes as they were before any was rescaled, by output, fit for the tensors as they are.
        self._original = {
            node.output[0]: onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node
        }

    def rescale(
        self, tensor: str, nodes: Sequence[str], divisors: Floats, outliers: Sequence[int] = ()
    ) -> None:
        """Divides the channels of `tensor` on its way to `nodes`, all of its matrix products, in graph order.

        Channels in `outliers` meet weights of 0 there and are added to each product in floating point.
        """
        factor = (1 / divisors).astype(np.float32)
        multiplier = divisors.copy()
        multiplier[list(outliers)] = 0
        folds = None if outliers else self._folds(tensor, len(factor), len(nodes))
        source = tensor
        if folds is None:
            source = self._multiplied(tensor, factor, before=nodes[0])
        self._apply(folds or (), factor)
        for name in nodes:
            node = self._nodes[name]
            weights = self._value(node, 1)
            if outliers:
                self._separate(node, tensor, input_weights(node, weights), outliers)
            scaled = input_weights(node, weights) * multiplier[:, None]
            self._replace(node, 1, np.ascontiguousarray(input_weights(node, scaled)))
            node.input[0] = source
            if folds is not None:
                # Its input has changed under the same name, so what is recomputed from there needs these weights.
                self._original[node.output[0]].input[1] = node.input[1]

    def _folds(self, tensor: str, channels: int, readers: int) -> list[Fold] | None:
        """The constants to change for `tensor`, read `readers` times, to come out scaled; None where none do."""
        addends: list[Fold] = []
        # A loop, because such chains are as long as whoever made the model likes.
        while True:
            node = self._producers.get(tensor)
            if node is None or self._uses[tensor] != readers or tensor != node.output[0]:
                return None
            match node.op_type:
                case "Relu":
                    tensor, readers = node.input[0], 1
                case "Add":
                    addend = self._per_channel(node, channels)
                    if addend is None:
                        return None
                    addends.append(addend)
                    tensor, readers = node.input[1 - addend.index], 1
                case _:
                    folds = self._ends(node, channels)
                    return None if folds is None else [*folds, *addends]

    def _ends(self, node: onnx.NodeProto, channels: int) -> list[Fold] | None:
        """The constants of a node that takes up the factor, so that nothing in front of it has to."""
        match node.op_type:
            case "LayerNormalization":
                return self._affine(node, channels)
            case "Mul":
                factor = self._per_channel(node, channels)
                whole = factor is not None and self._has_channels(node.input[1 - factor.index], channels)
                return [factor] if factor is not None and whole else None
            case LayerKind.MATMUL | LayerKind.GEMM:
                return self._product(node, channels)
            case _:
                return None

    def _affine(self, node: onnx.NodeProto, channels: int) -> list[Fold] | None:
        """A normalisation's scale and shift take the factor."""
        indices = [index for index in (1, 2) if index < len(node.input) and node.input[index]]
        if any(self._shape(node, index) != (channels,) for index in indices):
            return None
        return [Fold(node=node, index=index, apply=np.multiply) for index in indices]

    def _per_channel(self, node: onnx.NodeProto, channels: int) -> Fold | None:
        """The constant of an Add or Mul, where one of its inputs is one and holds a value per channel."""
        constant = [index for index in (0, 1) if self._shape(node, index) is not None]
        if len(constant) != 1:
            return None
        # A constant per channel already. A scalar is often part of an activation function that runtimes know by
        # its pattern (GELU), and would no longer recognise.
        shape = self._shape(node, constant[0])
        if shape is None or not shape or shape[-1] != channels or np.prod(shape) != channels:
            return None
        return Fold(node=node, index=constant[0], apply=np.multiply)

    def _product(self, node: onnx.NodeProto, channels: int) -> list[Fold] | None:
        """Constant weights [K, N] take the factor in their columns, a Gemm's addend along its last axis."""
        shape = self._shape(node, 1)
        transposed = _is_transposed(node)
        if shape is None or len(shape) != 2 or shape[not transposed] != channels:
            return None
        columns = _scale_rows if transposed else np.multiply
        scaled = [Fold(node=node, index=1, apply=columns)]
        if len(node.input) > 2 and node.input[2]:
            if self._shape(node, 2) is None:
                return None
            scaled.append(Fold(node=node, index=2, apply=np.multiply))
        return scaled

    def _has_channels(self, tensor: str, channels: int) -> bool:
        """Whether the last axis is known to have that size: scaling must not broadcast a tensor to a larger one."""
        value = self._values.get(tensor)
        if value is None:
            return False
        dims = value.type.tensor_type.shape.dim
        return len(dims) > 0 and dims[-1].dim_value == channels

    def _multiplied(self, tensor: str, factor: Floats, *, before: str) -> str:
        constant = self._constant(f"{tensor}_smoothing", factor)
        return self._insert("Mul", [tensor, constant], f"{tensor}_smoothed", like=tensor, before=before)

    def _separate(self, node: onnx.NodeProto, tensor: str, weights: Floats, outliers: Sequence[int]) -> None:
        """Adds x[..., outliers] W[outliers, :] to the node's product, one channel at a time.

        Measured on OpenVINO 2026.4: a Slice, Mul and Add for each of two channels cost no more than one Gather,
        MatMul and Add for both. A slice [..., 1] times weights [N] has the rank of x W whatever the rank of x.
        """
        result = node.output[0]
        share = weights * np.float32(float_attribute(node, "alpha", 1.0))
        total = node.output[0] = self._name(f"{result}_without_outliers")
        self._describe(total, like=result)
        for channel in outliers:
            name = f"{result}_outlier_{channel}"
            picked = self._recomputed(tensor, len(weights), channel, behind=node.name)
            if picked is None:
                bounds = [
                    self._constant(f"{name}_{bound}", np.array([value], np.int64))
                    for bound, value in (("start", channel), ("end", channel + 1), ("axis", -1))
                ]
                picked = self._insert("Slice", [tensor, *bounds], name, behind=node.name)
            factor = self._constant(f"{name}_weights", share[channel])
            product = self._insert("Mul", [picked, factor], f"{name}_product", like=result, behind=node.name)
            total = self._insert("Add", [total, product], f"{name}_sum", like=result, behind=node.name)
        # What was added last takes the name that the readers know.
        self._after[node.name][-1].output[0] = result

    def _recomputed(self, tensor: str, channels: int, channel: int, *, behind: str) -> str | None:
        """The channel computed from where it comes from, [..., 1]; None where that is not a matrix product."""
        nodes = chain(tensor, channels, self._original, self._constants)
        if nodes is None:
            return None
        copies: dict[str, str] = {}
        for node in sorted(nodes, key=lambda node: self._order[node.name]):
            inputs = list(node.input)
            for place, name in enumerate(inputs):
                if name in self._constants:
                    part = column(self._constants[name], channel)
                    inputs[place] = self._constant(f"{name}_channel_{channel}", np.ascontiguousarray(part))
                else:
                    inputs[place] = copies.get(name, name)
            copies[node.output[0]] = self._insert(
                node.op_type,
                inputs,
                f"{node.output[0]}_channel_{channel}",
                attributes=node.attribute,
                behind=behind,
            )
        return copies[tensor]


def input_weights(node: onnx.NodeProto, weights: Floats) -> Floats:
    """Stored weights as [K, N], inputs first; the same again turns them back."""
    return weights.T if _is_transposed(node) else weights


def _is_transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == LayerKind.GEMM and bool(int_attribute(node, "transB", 0))


def _scale_rows(value: Floats, factor: Floats) -> Floats:
    return value * factor[:, None]
