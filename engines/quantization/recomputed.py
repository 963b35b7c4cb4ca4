"""One channel of an activation, computed on its own from the matrix product that it comes from.

A channel could be cut out of the activation, but then the activation has to be written in floating point for that
alone, where the runtime would have made it 8 bits inside the product's kernel. On OpenVINO a second product of one
column costs a tenth of that (MiniLM's feed-forward layers, 64 tokens, 32 rows).
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.quantization.placement import LayerKind

_LONGEST = 16
"""Nodes between the product and the activation, at most: GELU written out has five."""
ELEMENTWISE = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Relu",
        "LeakyRelu",
        "Gelu",
        "Pow",
        "Exp",
        "Clip",
        "Sqrt",
    }
    | {"Softplus", "HardSigmoid", "HardSwish", "Elu", "Neg", "Min", "Max"}
)
"""Operators that compute each element from the same element of their inputs."""


def chain(
    tensor: str,
    channels: int,
    producers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, TensorProto],
) -> list[onnx.NodeProto] | None:
    """The nodes from matrix products with constant weights to `tensor`, last first; None where others take part.

    Every constant among their inputs holds one value, or one for each of the `channels` of the last axis.
    """
    found: dict[str, onnx.NodeProto] = {}
    pending = [tensor]
    while pending:
        name = pending.pop()
        node = producers.get(name)
        if node is None or len(found) >= _LONGEST:
            return None
        if node.name in found:
            continue
        found[node.name] = node
        if _is_product(node, channels, constants):
            continue
        if node.op_type not in ELEMENTWISE or name != node.output[0]:
            return None
        for source in node.input:
            if source not in constants:
                pending.append(source)
            elif not _is_per_channel(constants[source], channels):
                return None
    return list(found.values())


def column(constant: TensorProto, channel: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """The part of a constant that belongs to one channel of the last axis, that axis kept."""
    value = numpy_helper.to_array(constant)
    return value if value.size == 1 else value[..., channel : channel + 1]


def _is_product(node: onnx.NodeProto, channels: int, constants: Mapping[str, TensorProto]) -> bool:
    weights = constants.get(node.input[1]) if node.op_type == LayerKind.MATMUL else None
    return weights is not None and len(weights.dims) == 2 and weights.dims[1] == channels


def _is_per_channel(constant: TensorProto, channels: int) -> bool:
    elements = int(np.prod(constant.dims, dtype=np.int64))
    return elements == 1 or (elements == channels and constant.dims[-1] == channels)
