"""A convolutional network of ResNet-50's shape and size with random weights, written without a framework."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.model.tensors import Array

# Blocks and inner channels of each stage (He et al. 2016, table 1); outer channels are four times as many.
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_CLASSES = 1000
IMAGE_SHAPE = (3, 224, 224)


class _Builder:
    """Nodes and weights of a graph that is written from the input on."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(8)

    def constant(self, values: Array) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolution(self, features: str, channels: tuple[int, int], kernel: int, **rest: float) -> str:
        """With a bias, as batch normalisation folds into one; `gain` scales He's initial deviation."""
        before, after = channels
        deviation = rest.pop("gain", 1.0) * np.sqrt(2 / (before * kernel**2))
        weight = self._random.standard_normal((after, before, kernel, kernel)).astype(np.float32)
        bias = self._random.standard_normal(after).astype(np.float32)
        return self.node(
            "Conv",
            features,
            self.constant((weight * deviation).astype(np.float32)),
            self.constant(bias * np.float32(0.1)),
            kernel_shape=[kernel] * 2,
            pads=[kernel // 2] * 4,
            strides=[int(rest.get("stride", 1))] * 2,
        )

    def bottleneck(self, features: str, before: int, inner: int, stride: int) -> str:
        """[N, before, H, W] to [N, 4 * inner, H / stride, W / stride]."""
        outer = 4 * inner
        shortcut = features
        if before != outer:
            shortcut = self.convolution(features, (before, outer), 1, stride=stride)
        first = self.node("Relu", self.convolution(features, (before, inner), 1))
        second = self.node("Relu", self.convolution(first, (inner, inner), 3, stride=stride))
        # A small branch beside the shortcut keeps sixteen sums from growing without bound.
        third = self.convolution(second, (inner, outer), 1, gain=0.3)
        return self.node("Relu", self.node("Add", third, shortcut))

    def linear(self, features: str, before: int, after: int) -> str:
        weight = self._random.standard_normal((after, before)).astype(np.float32) / np.float32(
            np.sqrt(before)
        )
        return self.node("Gemm", features, self.constant(weight), transB=1)


def write_resnet50(path: Path) -> None:
    """Writes the network, 25.5 million weights, with a free batch: "image" [N, 3, 224, 224] to [N, 1000]."""
    build = _Builder()
    features = build.node("Relu", build.convolution("image", (3, 64), 7, stride=2))
    features = build.node("MaxPool", features, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    before = 64
    for stage, (blocks, inner) in enumerate(_STAGES):
        for block in range(blocks):
            features = build.bottleneck(features, before, inner, 2 if stage and not block else 1)
            before = 4 * inner
    pooled = build.node("Flatten", build.node("GlobalAveragePool", features))
    scores = build.linear(pooled, before, _CLASSES)
    graph = helper.make_graph(
        build.nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *IMAGE_SHAPE])],
        [helper.make_tensor_value_info(scores, TensorProto.FLOAT, ["batch", _CLASSES])],
        build.weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
