"""Which convolutions have FP8 kernels that are worth running.

NVIDIA's Model Optimizer (modelopt.onnx.quantization, its FP8 mode) leaves convolutions floating where TensorRT has no
FP8 kernel or one that is slower than FP16; matrix products follow the rule of INT8.
"""

import math

import onnx
from onnx import TensorProto

MOST_SLOW_CHANNELS = 16
"""Convolutions with so few channels on either side, in each group, are no faster in FP8 than in FP16."""

LARGEST_KERNEL = 32
"""Positions of the largest kernel."""


def float8_convolution_reason(node: onnx.NodeProto, weights: TensorProto) -> str | None:
    """Why a convolution with constant weights stays floating in FP8, if it does: a clause for the report."""
    if node.op_type != "Conv":
        return "it is a transposed convolution, which has no FP8 kernel"
    outputs, inputs, *kernel = weights.dims
    if min(outputs, inputs) <= MOST_SLOW_CHANNELS:
        return f"it has too few channels (from {inputs} to {outputs} in a group) to gain from FP8"
    if math.prod(kernel) > LARGEST_KERNEL:
        size = " x ".join(str(length) for length in kernel)
        return f"its kernel of {size} is larger than the {LARGEST_KERNEL} positions that FP8 kernels take"
    return None
