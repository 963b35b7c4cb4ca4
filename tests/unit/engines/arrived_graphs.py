"""Small models as tools export them that quantize: each writes Q/DQ in a way of its own."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.unit.engines.onnx_graphs import GraphBuilder, floats

CHANNELS = 32


def quantize(
    graph: GraphBuilder,
    source: str,
    scale: float | NDArray[np.float32],
    zero_point: int = 0,
    dtype: type = np.int8,
    axis: int | None = None,
) -> tuple[str, list[str]]:
    """Adds a QuantizeLinear; returns its codes and the names of scale and zero point."""
    scales = np.asarray(scale, np.float32)
    parameters = [
        graph.constant(f"{source}_scale", scales),
        graph.constant(f"{source}_zero", np.full(scales.shape, zero_point, dtype)),
    ]
    attributes = {} if axis is None else {"axis": axis}
    return graph.node("QuantizeLinear", [source, *parameters], f"{source}_codes", **attributes), parameters


def pair(
    graph: GraphBuilder,
    source: str,
    scale: float | NDArray[np.float32],
    zero_point: int = 0,
    dtype: type = np.int8,
    axis: int | None = None,
) -> str:
    """Adds a Q/DQ pair."""
    codes, parameters = quantize(graph, source, scale, zero_point, dtype, axis)
    attributes = {} if axis is None else {"axis": axis}
    return graph.node("DequantizeLinear", [codes, *parameters], f"{source}_real", **attributes)


def weight_scales(values: NDArray[np.float32], axis: int, levels: int = 127) -> NDArray[np.float32]:
    """A scale for each channel."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales: NDArray[np.float32] = (np.abs(values).max(axis=others) / levels).astype(np.float32)
    return scales


def value_of(graph: GraphBuilder, name: str) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in graph.initializers if tensor.name == name)
    return np.asarray(onnx.numpy_helper.to_array(tensor), np.float32)


def stored(graph: GraphBuilder, name: str, shape: Sequence[int], axis: int = 0, levels: int = 127) -> str:
    """Adds weights that are stored as INT8 codes, dequantized per channel."""
    graph.weight(name, *shape)
    values = value_of(graph, name)
    graph.initializers = [tensor for tensor in graph.initializers if tensor.name != name]
    scales = weight_scales(values, axis, levels)
    along = [-1 if place == axis else 1 for place in range(len(shape))]
    codes = np.rint(values / scales.reshape(along)).astype(np.int8)
    names = [
        graph.constant(f"{name}_codes", codes),
        graph.constant(f"{name}_scale", scales),
        graph.constant(f"{name}_zero", np.zeros(len(scales), np.int8)),
    ]
    return graph.node("DequantizeLinear", names, f"{name}_real", axis=axis)


def like_pytorch(*, opset: int = 17, levels: int = 127) -> onnx.ModelProto:
    """Float weights with Q and DQ behind them; unsigned activations of 7 bits; codes that are clipped."""
    graph = GraphBuilder(opset=opset)

    def seven_bits(source: str, scale: float, zero_point: int) -> str:
        codes, parameters = quantize(graph, source, scale, zero_point, np.uint8)
        low, high = (graph.constant(f"{source}_{n}", np.array(n, np.uint8)) for n in (0, 127))
        clipped = graph.node("Clip", [codes, low, high], f"{source}_clipped")
        return graph.node("DequantizeLinear", [clipped, *parameters], f"{source}_real")

    def weight(name: str, *shape: int) -> str:
        graph.weight(name, *shape)
        scales = weight_scales(value_of(graph, name), 0, levels)
        codes, parameters = quantize(graph, name, scales, axis=0)
        low, high = (graph.constant(f"{name}_{n}", np.array(n, np.int8)) for n in (-127, 127))
        clipped = graph.node("Clip", [codes, low, high], f"{name}_clipped")
        return graph.node("DequantizeLinear", [clipped, *parameters], f"{name}_real", axis=0)

    image = seven_bits("image", 0.05, 64)
    graph.node("Conv", [image, weight("w1", CHANNELS, 3, 3, 3)], "conv1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv1"], "relu1")
    hidden = seven_bits("relu1", 0.04, 0)
    graph.node("Conv", [hidden, weight("w2", CHANNELS, CHANNELS, 3, 3)], "conv2")
    graph.node("GlobalAveragePool", ["conv2"], "pooled")
    graph.node("Flatten", ["pooled"], "flat")
    features = seven_bits("flat", 0.02, 64)
    graph.node("Gemm", [features, weight("w3", 16, CHANNELS), graph.weight("b3", 16)], "scores", transB=1)
    model = graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", 16)])
    model.producer_name, model.producer_version = "pytorch", "2.5.1"
    return model


def like_nncf(*, opset: int = 13, levels: int = 127) -> onnx.ModelProto:
    """Symmetric INT8 activations; a batch normalisation that stayed; a residual whose both inputs are quantized."""
    graph = GraphBuilder(opset=opset)
    image = pair(graph, "image", 3 / 127)
    weight = stored(graph, "w1", (CHANNELS, 3, 3, 3), levels=levels)
    graph.node("Conv", [image, weight], "conv1", pads=[1, 1, 1, 1])
    norm = [
        graph.constant(f"norm.{n}", graph.random.uniform(0.5, 1.5, CHANNELS).astype(np.float32))
        for n in range(4)
    ]
    graph.node("BatchNormalization", ["conv1", *norm], "normal")
    graph.node("Relu", ["normal"], "relu1")
    relu = pair(graph, "relu1", 6 / 127)
    weight = stored(graph, "w2", (CHANNELS, CHANNELS, 3, 3), levels=levels)
    graph.node("Conv", [relu, weight], "conv2", pads=[1, 1, 1, 1])
    graph.node("Add", [pair(graph, "conv2", 6 / 127), relu], "sum")
    graph.node("GlobalAveragePool", ["sum"], "pooled")
    graph.node("Flatten", ["pooled"], "flat")
    weight = stored(graph, "w3", (16, CHANNELS), levels=levels)
    graph.node("Gemm", [pair(graph, "flat", 4 / 127), weight], "scores", transB=1)
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", 16)])


def like_tf2onnx(*, opset: int = 13) -> onnx.ModelProto:
    """NHWC outside; transposed between Q and DQ, and behind the DQ of the weights; scales of the shape [1]."""
    graph = GraphBuilder(opset=opset)
    codes, parameters = quantize(graph, "image", np.array([0.05], np.float32))
    moved = graph.node("Transpose", [codes], "image_nchw", perm=[0, 3, 1, 2])
    image = graph.node("DequantizeLinear", [moved, *parameters], "image_real")
    hwio = stored(graph, "w1", (3, 3, 3, CHANNELS), axis=3)
    oihw = graph.node("Transpose", [hwio], "w1_oihw", perm=[3, 2, 0, 1])
    graph.node("Conv", [image, oihw], "conv1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["conv1"], "relu1")
    codes, parameters = quantize(graph, "relu1", np.array([0.03], np.float32))
    graph.node("DequantizeLinear", [codes, *parameters], "relu1_real")
    graph.node("GlobalAveragePool", ["relu1_real"], "pooled")
    graph.node("Flatten", ["pooled"], "flat")
    features = pair(graph, "flat", 0.02)
    graph.node("MatMul", [features, stored(graph, "w2", (CHANNELS, 16), axis=1)], "scores")
    model = graph.model([floats("image", "n", 8, 8, 3)], [floats("scores", "n", 16)])
    model.producer_name, model.producer_version = "tf2onnx", "1.16.1"
    return model


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """The shape of one row of the image."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


def rows_for(model: onnx.ModelProto, rows: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Normal images."""
    return np.random.default_rng(seed).normal(size=(rows, *shape_of(model))).astype(np.float32)
