import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.errors import UnsupportedModelError
from engines.formats import (
    WeightBits,
    activation_scale,
    along,
    dequantize,
    quantize,
    quantize_weights,
    weight_scales,
)
from engines.model import Model, from_proto
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

GRAPHS = {
    "conv": onnx_graphs.conv_net,
    "residual": onnx_graphs.residual_net,
    "depthwise": onnx_graphs.depthwise_net,
    "transposed": onnx_graphs.conv_transpose_net,
}


def quantized(proto: onnx.ModelProto, threshold: float = 4.0, bits: int = 8) -> Model:
    model = from_proto(proto)
    placement = place(model)
    return quantize_model(model, placement, dict.fromkeys(tensors(placement), threshold), weight_bits=bits)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("bits", [8, 7])
def test_result_is_valid_onnx_that_runs(name: str, bits: int) -> None:
    model = quantized(GRAPHS[name](), bits=bits)
    onnx.checker.check_model(model.proto, full_check=True)
    outputs = ReferenceSession(model.proto.SerializeToString(), threads=1).run(
        {"image": onnx_graphs.image_rows(3)}
    )
    assert outputs["scores"].shape == (3, 4)


def linear(columns: int = 24) -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("MatMul", ["x", graph.weight("w", 32, columns)], "y")
    return graph.model([floats("x", "n", 32)], [floats("y", "n", columns)])


@pytest.mark.parametrize("bits", list(WeightBits))
def test_numerics_are_those_of_the_formats(bits: WeightBits) -> None:
    proto = linear()
    weights = numpy_helper.to_array(proto.graph.initializer[0])
    rows = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    scale, scales = activation_scale(2.0), weight_scales(weights, 1, bits)
    coarse = dequantize(quantize(rows, scale, low=-128, high=127), scale)
    coarse_weights = dequantize(quantize_weights(weights, scales, 1, bits), along(scales, 1, 2))
    session = ReferenceSession(quantized(proto, 2.0, bits).proto.SerializeToString(), threads=1)
    assert session.run({"x": rows})["y"] == pytest.approx(coarse @ coarse_weights, rel=1e-5, abs=1e-6)


def test_weights_are_stored_as_int8_codes_and_the_floats_are_gone() -> None:
    model = quantized(linear())
    types = {tensor.name: tensor.data_type for tensor in model.proto.graph.initializer}
    assert types["w_quantized"] == onnx.TensorProto.INT8
    assert "w" not in types
    quantizers = [node for node in model.proto.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in quantizers] == ["x"]


def test_every_zero_point_is_int8_and_zero() -> None:
    for tensor in quantized(onnx_graphs.residual_net()).proto.graph.initializer:
        if tensor.name.endswith("_zero_point"):
            assert tensor.data_type == onnx.TensorProto.INT8
            assert not numpy_helper.to_array(tensor).any()


def test_one_pair_serves_all_quantized_consumers_and_others_read_floats() -> None:
    graph = GraphBuilder()
    graph.node("MatMul", ["x", graph.weight("v", 32, 32)], "left")
    graph.node("MatMul", ["x", graph.weight("w", 32, 32)], "right")
    graph.node("Sum", ["left", "right", "x"], "y")
    model = quantized(graph.model([floats("x", "n", 32)], [floats("y", "n", 32)]))
    nodes = {node.name: node for node in model.proto.graph.node}
    assert nodes["left_node"].input[0] == nodes["right_node"].input[0] == "x_dequantized"
    assert nodes["y_node"].input[2] == "x"
    assert sum(node.op_type == "QuantizeLinear" for node in model.proto.graph.node) == 1


def test_weights_shared_by_layers_are_stored_once_and_stay_floating_for_others() -> None:
    graph = GraphBuilder()
    graph.weight("w", 32, 32)
    graph.node("MatMul", ["x", "w"], "a")
    graph.node("MatMul", ["a", "w"], "b")
    graph.node("Gemm", ["b", "w"], "c", transB=1)
    graph.node("Sum", ["c", "w"], "y")
    model = quantized(graph.model([floats("x", 32, 32)], [floats("y", 32, 32)]))
    names = [tensor.name for tensor in model.proto.graph.initializer]
    stored = [name for name in names if "w_quantized" in name]
    assert stored == ["w_quantized", "w_quantized_2"], (
        "one copy for axis 1, shared by two layers, one for axis 0"
    )
    assert "w" in names
    onnx.checker.check_model(model.proto, full_check=True)


def test_names_that_the_model_has_already_are_left_to_it() -> None:
    graph = GraphBuilder()
    graph.node("Identity", ["x"], "x_scale")
    graph.node("MatMul", ["x", graph.weight("w", 32, 32)], "x_quantized")
    graph.node("Add", ["x_quantized", "x_scale"], "w_scale")
    model = quantized(graph.model([floats("x", "n", 32)], [floats("w_scale", "n", 32)]))
    onnx.checker.check_model(model.proto, full_check=True)
    produced = [name for node in model.proto.graph.node for name in node.output]
    produced += [tensor.name for tensor in model.proto.graph.initializer]
    assert len(produced) == len(set(produced))


def test_model_that_was_given_is_not_changed() -> None:
    model = from_proto(onnx_graphs.residual_net())
    before = model.proto.SerializeToString(deterministic=True)
    placement = place(model)
    quantize_model(model, placement, dict.fromkeys(tensors(placement), 1.0), weight_bits=8)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_opset_without_scales_per_channel_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"has opset 12, .* from opset 13 on; export it with a newer opset"
    ):
        quantized(onnx_graphs.conv_net(opset=12))
