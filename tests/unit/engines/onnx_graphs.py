"""Small ONNX models for tests, built from a seed, checked by nobody: a test may break them on purpose.

Every builder takes `opset` and returns a fresh proto. `rows` is the batch axis: a name for a free one, a
number for a fixed one. Image models read `image` [rows, 3, 8, 8], vector models read `vector` [rows, 12];
all write `scores`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DEFAULT_OPSET = 17
IMAGE_ITEM = (3, 8, 8)
VECTOR_ITEM = (12,)


class GraphBuilder:
    """Collects nodes and initializers; each call that adds one returns the name of its output."""

    def __init__(self, *, opset: int = DEFAULT_OPSET, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer."""
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Adds a float32 initializer of normal values, scaled so that activations keep their size."""
        fan_in = max(1, int(np.prod(shape[1:])))
        value = self.random.normal(0.0, (2.0 / fan_in) ** 0.5, shape)
        return self.constant(name, value.astype(np.float32))

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node that is named after its output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """The model of everything added so far."""
        graph = helper.make_graph(self.nodes, "test", inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=max(7, helper.find_min_ir_version_for(imports))
        )


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    """A float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def image_rows(rows: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Rows for `image`, normal, [rows, 3, 8, 8]."""
    return np.random.default_rng(seed).normal(size=(rows, *IMAGE_ITEM)).astype(np.float32)


def vector_rows(rows: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Rows for `vector`, normal, [rows, 12]."""
    return np.random.default_rng(seed).normal(size=(rows, *VECTOR_ITEM)).astype(np.float32)


def _classifier(
    graph: GraphBuilder, features: str, channels: int, *, rows: int | str, classes: int = 4
) -> onnx.ModelProto:
    pooled = graph.node("GlobalAveragePool", [features], "pooled")
    flat = graph.node("Flatten", [pooled], "flat", axis=1)
    weight, bias = graph.weight("fc.weight", classes, channels), graph.weight("fc.bias", classes)
    graph.node("Gemm", [flat, weight, bias], "scores", transB=1)
    return graph.model([floats("image", rows, *IMAGE_ITEM)], [floats("scores", rows, classes)])


def conv_net(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", channels: int = 16, seed: int = 0
) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, GlobalAveragePool, Flatten, Gemm. A number as `rows` makes a fixed batch."""
    graph = GraphBuilder(opset=opset, seed=seed)
    weight, bias = graph.weight("conv1.weight", channels, 3, 3, 3), graph.weight("conv1.bias", channels)
    graph.node("Conv", ["image", weight, bias], "conv1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv1"], "relu1")
    weight = graph.weight("conv2.weight", channels, channels, 3, 3)
    bias = graph.weight("conv2.bias", channels)
    graph.node("Conv", ["relu1", weight, bias], "conv2", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv2"], "relu2")
    return _classifier(graph, "relu2", channels, rows=rows)


def residual_net(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", channels: int = 16, seed: int = 0
) -> onnx.ModelProto:
    """A stem, then relu(stem + conv(relu(conv(stem)))), then the classifier: `residual` is the Add."""
    graph = GraphBuilder(opset=opset, seed=seed)
    graph.node("Conv", ["image", graph.weight("stem.weight", channels, 3, 3, 3)], "stem", pads=[1, 1, 1, 1])
    graph.node("Relu", ["stem"], "identity")
    weight = graph.weight("conv1.weight", channels, channels, 3, 3)
    graph.node("Conv", ["identity", weight], "conv1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv1"], "relu1")
    weight = graph.weight("conv2.weight", channels, channels, 3, 3)
    graph.node("Conv", ["relu1", weight], "conv2", pads=[1, 1, 1, 1])
    graph.node("Add", ["conv2", "identity"], "residual")
    graph.node("Relu", ["residual"], "relu2")
    return _classifier(graph, "relu2", channels, rows=rows)


def depthwise_net(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", channels: int = 16, seed: int = 0
) -> onnx.ModelProto:
    """A pointwise, a depthwise and another pointwise Conv, ReLU6 (Clip) between them, then the classifier."""
    graph = GraphBuilder(opset=opset, seed=seed)
    low, high = (
        graph.constant("zero", np.array(0, np.float32)),
        graph.constant("six", np.array(6, np.float32)),
    )
    graph.node("Conv", ["image", graph.weight("expand.weight", channels, 3, 1, 1)], "expand")
    graph.node("Clip", ["expand", low, high], "clip1")
    weight = graph.weight("depthwise.weight", channels, 1, 3, 3)
    graph.node("Conv", ["clip1", weight], "depthwise", group=channels, pads=[1, 1, 1, 1])
    graph.node("Clip", ["depthwise", low, high], "clip2")
    graph.node("Conv", ["clip2", graph.weight("project.weight", channels, channels, 1, 1)], "project")
    return _classifier(graph, "project", channels, rows=rows)


def batch_norm_net(
    *,
    opset: int = DEFAULT_OPSET,
    rows: int | str = "n",
    channels: int = 16,
    bias: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, then the classifier."""
    graph = GraphBuilder(opset=opset, seed=seed)
    inputs = ["image", graph.weight("conv.weight", channels, 3, 3, 3)]
    if bias:
        inputs.append(graph.weight("conv.bias", channels))
    graph.node("Conv", inputs, "conv", pads=[1, 1, 1, 1])
    batch_norm(graph, "conv", "bn", channels)
    graph.node("Relu", ["bn"], "relu")
    return _classifier(graph, "relu", channels, rows=rows)


def batch_norm(graph: GraphBuilder, source: str, output: str, channels: int) -> str:
    """Adds a BatchNormalization whose four parameters are initializers with values away from 0 and 1."""
    random = graph.random
    parameters = {
        "scale": random.uniform(0.5, 2.0, channels),
        "shift": random.normal(size=channels),
        "mean": random.normal(size=channels),
        "variance": random.uniform(0.3, 3.0, channels),
    }
    names = [graph.constant(f"{output}.{key}", v.astype(np.float32)) for key, v in parameters.items()]
    return graph.node("BatchNormalization", [source, *names], output, epsilon=1e-3)


def conv_transpose_net(
    *,
    opset: int = DEFAULT_OPSET,
    rows: int | str = "n",
    channels: int = 16,
    group: int = 1,
    with_batch_norm: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Conv, Relu, ConvTranspose that doubles the image, then the classifier."""
    graph = GraphBuilder(opset=opset, seed=seed)
    graph.node("Conv", ["image", graph.weight("conv.weight", channels, 3, 3, 3)], "conv", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv"], "relu")
    weight = graph.weight("up.weight", channels, channels // group, 2, 2)
    graph.node("ConvTranspose", ["relu", weight], "up", strides=[2, 2], group=group)
    features = batch_norm(graph, "up", "bn", channels) if with_batch_norm else "up"
    return _classifier(graph, features, channels, rows=rows)


def resize_net(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", channels: int = 16, seed: int = 0
) -> onnx.ModelProto:
    """Conv, nearest Resize to twice the size, Conv, then the classifier."""
    graph = GraphBuilder(opset=opset, seed=seed)
    graph.node("Conv", ["image", graph.weight("conv1.weight", channels, 3, 3, 3)], "conv1")
    region = graph.constant("region", np.zeros(0, np.float32))
    scales = graph.constant("scales", np.array([1, 1, 2, 2], np.float32))
    graph.node(
        "Resize",
        ["conv1", region, scales],
        "resized",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    graph.node("Conv", ["resized", graph.weight("conv2.weight", channels, channels, 3, 3)], "conv2")
    return _classifier(graph, "conv2", channels, rows=rows)


def mlp(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", hidden: int = 32, classes: int = 4, seed: int = 0
) -> onnx.ModelProto:
    """Gemm (transB=1), Relu, Gemm (transB=0)."""
    graph = GraphBuilder(opset=opset, seed=seed)
    weight, bias = graph.weight("fc1.weight", hidden, *VECTOR_ITEM), graph.weight("fc1.bias", hidden)
    graph.node("Gemm", ["vector", weight, bias], "fc1", transB=1)
    graph.node("Relu", ["fc1"], "relu")
    weight, bias = graph.weight("fc2.weight", hidden, classes), graph.weight("fc2.bias", classes)
    graph.node("Gemm", ["relu", weight, bias], "scores")
    return graph.model([floats("vector", rows, *VECTOR_ITEM)], [floats("scores", rows, classes)])


def matmul_net(
    *, opset: int = DEFAULT_OPSET, rows: int | str = "n", hidden: int = 32, classes: int = 4, seed: int = 0
) -> onnx.ModelProto:
    """MatMul and Add (as exporters write a linear layer of rank 3 and more), Relu, MatMul."""
    graph = GraphBuilder(opset=opset, seed=seed)
    graph.node("MatMul", ["vector", graph.weight("fc1.weight", *VECTOR_ITEM, hidden)], "product")
    graph.node("Add", ["product", graph.weight("fc1.bias", hidden)], "fc1")
    graph.node("Relu", ["fc1"], "relu")
    graph.node("MatMul", ["relu", graph.weight("fc2.weight", hidden, classes)], "scores")
    return graph.model([floats("vector", rows, *VECTOR_ITEM)], [floats("scores", rows, classes)])


BUILDERS = (
    conv_net,
    residual_net,
    depthwise_net,
    batch_norm_net,
    conv_transpose_net,
    resize_net,
    mlp,
    matmul_net,
)
"""All of the above."""
