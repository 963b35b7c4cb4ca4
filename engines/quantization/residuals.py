"""Finds the residual sums that fuse with a convolution, and which of their inputs has to be 8 bits for that."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import onnx

from engines.model.wiring import producers, readers

_RESHAPES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that move values without changing them."""


def residual_inputs(
    graph: onnx.GraphProto, convolutions: AbstractSet[str], quantized: AbstractSet[str]
) -> Iterator[tuple[onnx.NodeProto, int]]:
    """The Adds behind convolutions, in graph order, each with the index of the input to quantize.

    Args:
        graph: prepared; with shapes as far as they can be inferred.
        convolutions: names of the nodes that are quantized convolutions.
        quantized: tensors that layers read as 8 bits.
    """
    return _Residuals(graph, convolutions, quantized).find()


class _Residuals:
    def __init__(
        self, graph: onnx.GraphProto, convolutions: AbstractSet[str], quantized: AbstractSet[str]
    ) -> None:
        self._graph = graph
        self._convolutions = convolutions
        self._quantized = set(quantized)
        self._constants = {tensor.name for tensor in graph.initializer}
        self._producers = producers(graph)
        self._order = {output: place for place, node in enumerate(graph.node) for output in node.output}
        self._consumers = readers(graph)
        self._outputs = {value.name for value in graph.output}
        self._types = {
            value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)
        }

    def find(self) -> Iterator[tuple[onnx.NodeProto, int]]:
        for node in self._graph.node:
            index = self._residual(node) if node.op_type == "Add" else None
            if index is not None:
                self._quantized.add(node.input[index])
                yield node, index

    def _residual(self, node: onnx.NodeProto) -> int | None:
        """The input that does not come straight from a convolution; None for a sum that stays floating.

        Where both do, it is the identity that some layer reads as 8 bits already (MobileNetV2), else the one that
        is computed first (a block whose shortcut is a convolution too): the later one takes it as the addend of
        its fused kernel.
        """
        straight = [index for index, tensor in enumerate(node.input) if self._is_convolution(tensor)]
        if not straight or not self._is_residual(node):
            return None

        def preference(index: int) -> tuple[bool, bool, int]:
            tensor = node.input[index]
            return index in straight, tensor not in self._quantized, self._order.get(tensor, -1)

        residual = min((0, 1), key=preference)
        return None if self._is_transformer(node, node.input[residual]) else residual

    def _is_residual(self, node: onnx.NodeProto) -> bool:
        """Whether an Add sums two activations [N, C, spatial...] of one shape: a broadcast one is no residual."""
        first, second = (self._shape(tensor) for tensor in node.input)
        return (
            not self._constants.intersection(node.input)
            and node.input[0] != node.input[1]
            and 0 < len(first) == len(second)
            and all(
                one is None or other is None or one == other for one, other in zip(first, second, strict=True)
            )
        )

    def _is_transformer(self, node: onnx.NodeProto, residual: str) -> bool:
        """Whether a sum belongs to a transformer that convolves its tokens.

        They were reshaped to an image for that, or are normalized as tokens afterwards.
        """
        producer = self._producers.get(residual)
        if producer is not None and producer.op_type in _RESHAPES:
            return True
        reached = [node.output[0]]
        for tensor in reached:
            for consumer in self._consumers.get(tensor, []):
                if consumer.op_type == "LayerNormalization":
                    return True
                if consumer.op_type in _RESHAPES:
                    reached.append(consumer.output[0])
        return False

    def _shape(self, tensor: str) -> list[int | None]:
        """Sizes, None for a free one; empty where nothing is known."""
        if tensor not in self._types:
            return []
        sizes = self._types[tensor].shape.dim
        return [size.dim_value if size.HasField("dim_value") else None for size in sizes]

    def _is_convolution(self, tensor: str) -> bool:
        """Whether a quantized convolution computes `tensor` for the sum alone, perhaps through a BatchNormalization.

        What others read as well has to be there without the addend, so no kernel adds it (the first block of each
        stage of a ConvNeXt, whose branch cost 7 dB in 8 bits).
        """
        producer = self._producers.get(tensor)
        if producer is not None and producer.op_type == "BatchNormalization" and self._is_read_once(tensor):
            tensor = producer.input[0]
            producer = self._producers.get(tensor)
        return producer is not None and producer.name in self._convolutions and self._is_read_once(tensor)

    def _is_read_once(self, tensor: str) -> bool:
        return len(self._consumers.get(tensor, [])) == 1 and tensor not in self._outputs
