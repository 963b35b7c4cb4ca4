"""Small models as exporters of real ones write them: several inputs and outputs, integers, free lengths."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.unit.engines.onnx_graphs import DEFAULT_OPSET, IMAGE_ITEM, GraphBuilder, floats

VOCABULARY = 100


def integers(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    """An int64 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, list(shape))


def two_towers(*, rows: int | str = "n") -> onnx.ModelProto:
    """`left` [rows, 24] and `right` [rows, 16] -> `scores` [rows, 16] and `gates` [rows, 32]."""
    graph = GraphBuilder()
    left = graph.node("MatMul", ["left", graph.weight("left.weight", 24, 32)], "left_features")
    right = graph.node("MatMul", ["right", graph.weight("right.weight", 16, 32)], "right_features")
    graph.node("Add", [left, right], "sum")
    graph.node("Relu", ["sum"], "relu")
    graph.node("MatMul", ["relu", graph.weight("head.weight", 32, 16)], "scores")
    graph.node("Sigmoid", ["sum"], "gates")
    return graph.model(
        [floats("left", rows, 24), floats("right", rows, 16)],
        [floats("scores", rows, 16), floats("gates", rows, 32)],
    )


def encoder(*, rows: int | str = "n", length: int | str = "length") -> onnx.ModelProto:
    """Token `ids` and `mask`, int64 [rows, length] -> `pooled` [rows, 32], the masked sum of a small MLP."""
    graph = GraphBuilder()
    graph.node("Gather", [graph.weight("embedding", VOCABULARY, 32), "ids"], "embedded")
    graph.node("MatMul", ["embedded", graph.weight("up.weight", 32, 64)], "up")
    graph.node("Relu", ["up"], "relu")
    graph.node("MatMul", ["relu", graph.weight("down.weight", 64, 32)], "down")
    graph.node("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT)
    graph.node("Unsqueeze", ["mask_float", graph.constant("last", np.array([2]))], "mask_column")
    graph.node("Mul", ["down", "mask_column"], "masked")
    graph.node("ReduceSum", ["masked", graph.constant("tokens", np.array([1]))], "pooled", keepdims=0)
    return graph.model(
        [integers("ids", rows, length), integers("mask", rows, length)], [floats("pooled", rows, 32)]
    )


def token_rows(rows: int, length: int, *, seed: int = 1) -> dict[str, NDArray[np.int64]]:
    """Samples for `encoder`; the mask leaves out the last token of every second row."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length))
    mask = np.ones((rows, length), np.int64)
    mask[::2, -1] = 0
    return {"ids": ids, "mask": mask}


def shared_weight() -> onnx.ModelProto:
    """One square matrix read by two MatMul and, transposed, by a Gemm: `vector` [n, 32] -> `scores` [n, 32]."""
    graph = GraphBuilder()
    weight = graph.weight("weight", 32, 32)
    graph.node("MatMul", ["vector", weight], "first")
    graph.node("Relu", ["first"], "relu1")
    graph.node("MatMul", ["relu1", weight], "second")
    graph.node("Relu", ["second"], "relu2")
    graph.node("Gemm", ["relu2", weight], "scores", transB=1)
    return graph.model([floats("vector", "n", 32)], [floats("scores", "n", 32)])


def constant_nodes() -> onnx.ModelProto:
    """A MatMul whose weights, and a Mul whose factor, are Constant nodes: `vector` [n, 24] -> `scores` [n, 32]."""
    graph = GraphBuilder()
    graph.weight("weight", 24, 32)
    graph.nodes.append(helper.make_node("Constant", [], ["weight"], value=graph.initializers.pop()))
    graph.nodes.append(helper.make_node("Constant", [], ["half"], value_float=0.5))
    graph.node("MatMul", ["vector", "weight"], "product")
    graph.node("Mul", ["product", "half"], "scores")
    return graph.model([floats("vector", "n", 24)], [floats("scores", "n", 32)])


def detector(*, rows: int | str = "n") -> onnx.ModelProto:
    """`image` -> `boxes` [rows, 64, 4], `scores` [rows, 64, 20] and int64 `labels` [rows, 64], as detectors give.

    The shapes of the reshapes hold a fixed batch as exporters write it.
    """
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("stem.weight", 16, 3, 3, 3)], "stem", pads=[1, 1, 1, 1])
    graph.node("Relu", ["stem"], "features")
    for name, size in (("boxes", 4), ("logits", 20)):
        head = graph.node("Conv", ["features", graph.weight(f"{name}.weight", size, 16, 1, 1)], f"{name}_map")
        last = graph.node("Transpose", [head], f"{name}_last", perm=[0, 2, 3, 1])
        shape = np.array([rows if isinstance(rows, int) else 0, 64, size])
        graph.node("Reshape", [last, graph.constant(f"{name}.shape", shape)], name)
    graph.node("Sigmoid", ["logits"], "scores")
    graph.node("ArgMax", ["scores"], "labels", axis=2, keepdims=0)
    outputs = [floats("boxes", rows, 64, 4), floats("scores", rows, 64, 20), integers("labels", rows, 64)]
    return graph.model([floats("image", rows, *IMAGE_ITEM)], outputs)


def flattening_net(*, rows: int | str = "n", opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Reshape to [rows, 256] as older exporters write it, Gemm: `scores` [rows, 16]."""
    graph = GraphBuilder(opset=opset)
    weight, bias = graph.weight("conv.weight", 16, 3, 3, 3), graph.weight("conv.bias", 16)
    graph.node("Conv", ["image", weight, bias], "conv", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv"], "relu")
    graph.node("MaxPool", ["relu"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    shape = np.array([rows, 256] if isinstance(rows, int) else [-1, 256])
    graph.node("Reshape", ["pooled", graph.constant("shape", shape)], "flat")
    # Without a bias no Gemm is valid before opset 11.
    head = [graph.weight("head.weight", 16, 256), graph.weight("head.bias", 16)]
    graph.node("Gemm", ["flat", *head], "scores", transB=1)
    return graph.model([floats("image", rows, *IMAGE_ITEM)], [floats("scores", rows, 16)])


def in_half_precision(model: onnx.ModelProto, element_type: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The model with every float tensor, inputs and outputs included, of 16 bits, or of another type."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            dtype = helper.tensor_dtype_to_np_dtype(element_type)
            narrow = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(narrow, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = element_type
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = element_type
    return half
