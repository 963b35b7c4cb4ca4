"""A small 8-bit model whose intermediate sums overflow on processors without VNNI.

Such processors multiply unsigned by signed bytes and add neighbouring pairs in 16 bits with saturation
(Intel's VPMADDUBSW). A signed activation q is shifted to the unsigned q + 128, so with q = 127 and 8-bit
weights a pair adds up to 2 * 255 * 127 = 64,770, past the 32,767 that 16 bits hold; with 7-bit weights it is
at most 2 * 255 * 64 = 32,640, which fits. VNNI adds four products in 32 bits, where nothing overflows.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.model.tensors import Array

_CHANNELS = 64
_KERNEL = 3
# Of the image: for smaller ones, of 3 and 4, oneDNN does not use AMX where there is AMX.
_SIZE = 8
_OPSET = 19
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SaturationProbe:
    """A model with a convolution and a matrix product of 8-bit integers, and what it must answer."""

    model: bytes
    feeds: dict[str, Array]
    # The right answer of every element, by output.
    expected: dict[str, float]

    def passes(self, outputs: dict[str, Array]) -> bool:
        """Whether the answers are right to a thousandth; saturated ones are off by a factor of a hundred."""
        return all(
            bool(np.allclose(outputs[name], value, rtol=_TOLERANCE, atol=0))
            for name, value in self.expected.items()
        )


def saturation_probe() -> SaturationProbe:
    """The model whose every activation and weight is 127 (scale 1/127): each product counts 1. Its shapes are fixed."""
    image, vector = (1, _CHANNELS, _SIZE, _SIZE), (2, _CHANNELS)
    places, full = _SIZE - _KERNEL + 1, np.int8(127)
    constants: dict[str, Array] = {
        "scale": np.array(1 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "kernel": np.full((32, _CHANNELS, _KERNEL, _KERNEL), full),
        "matrix": np.full((_CHANNELS, 32), full),
    }
    nodes = [
        *_dequantized("image"),
        *_dequantized("vector"),
        helper.make_node("DequantizeLinear", ["kernel", "scale", "zero"], ["kernel_real"]),
        helper.make_node("DequantizeLinear", ["matrix", "scale", "zero"], ["matrix_real"]),
        helper.make_node("Conv", ["image_real", "kernel_real"], ["convolution"]),
        helper.make_node("MatMul", ["vector_real", "matrix_real"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation_probe",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, image),
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, vector),
        ],
        [
            helper.make_tensor_value_info("convolution", TensorProto.FLOAT, [1, 32, places, places]),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [2, 32]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", _OPSET)]
    proto = helper.make_model(
        graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports)
    )
    return SaturationProbe(
        model=proto.SerializeToString(),
        feeds={"image": np.ones(image, np.float32), "vector": np.ones(vector, np.float32)},
        expected={"convolution": float(_CHANNELS * _KERNEL**2), "product": float(_CHANNELS)},
    )


def _dequantized(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_8"]),
        helper.make_node("DequantizeLinear", [f"{name}_8", "scale", "zero"], [f"{name}_real"]),
    ]
