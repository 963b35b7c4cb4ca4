import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.errors import UnsupportedModelError
from engines.float8 import Float8Weights, float8_grid
from engines.formats import (
    WeightBits,
    activation_scale,
    along,
    dequantize,
    quantize,
    quantize_weights,
    weight_scales,
)
from engines.model.model import Model, from_proto
from engines.options import Precision
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


def quantized(
    proto: onnx.ModelProto,
    threshold: float = 4.0,
    bits: int = 8,
    precision: Precision = Precision.INT8,
) -> Model:
    model = from_proto(onnx.shape_inference.infer_shapes(proto))
    placement = place(model)
    thresholds = dict.fromkeys(tensors(placement), threshold)
    return quantize_model(model, placement, thresholds, weight_bits=bits, precision=precision)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("bits", [8, 7])
def test_result_is_valid_onnx_that_runs(name: str, bits: int) -> None:
    model = quantized(GRAPHS[name](), bits=bits)
    onnx.checker.check_model(model.proto, full_check=True)
    outputs = ReferenceSession(model.proto.SerializeToString(), threads=1).run(
        {"image": onnx_graphs.image_rows(3)}
    )
    assert outputs["scores"].shape == (3, 4)


def linear(columns: int = 24, opset: int = onnx_graphs.DEFAULT_OPSET) -> onnx.ModelProto:
    graph = GraphBuilder(opset=opset)
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


@pytest.mark.parametrize("opset", [19, 21])
def test_fp8_numerics_are_those_of_the_e4m3_grid(opset: int) -> None:
    proto = linear(opset=opset)
    weights = numpy_helper.to_array(proto.graph.initializer[0])
    rows = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    model = quantized(proto, 2.0, precision=Precision.FP8)
    onnx.checker.check_model(model.proto, full_check=True)
    grid = Float8Weights()
    scales = weight_scales(weights, 1, grid)
    coarse_weights = grid.decode(quantize_weights(weights, scales, 1, grid)) * along(scales, 1, 2)
    expected = float8_grid(2.0).snap(rows) @ coarse_weights
    session = ReferenceSession(model.proto.SerializeToString(), threads=1)
    assert session.run({"x": rows})["y"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_fp8_codes_and_zero_points_are_e4m3_and_other_constants_floats() -> None:
    model = quantized(onnx_graphs.residual_net(opset=21), precision=Precision.FP8)
    onnx.checker.check_model(model.proto, full_check=True)
    for tensor in model.proto.graph.initializer:
        coded = tensor.name.endswith(("_quantized", "_zero_point"))
        assert tensor.data_type == (onnx.TensorProto.FLOAT8E4M3FN if coded else onnx.TensorProto.FLOAT)
        if tensor.name.endswith("_zero_point"):
            assert not any(tensor.raw_data)


def test_opset_without_fp8_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"has opset 18, .* to FP8 .* from opset 19 on; export it"
    ):
        quantized(linear(opset=18), precision=Precision.FP8)


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


def test_residual_net_gets_exactly_these_nodes_in_this_order() -> None:
    model = quantized(onnx_graphs.residual_net())
    nodes = [(node.op_type, node.input[0], node.output[0]) for node in model.proto.graph.node]
    assert nodes[:12] == [
        ("QuantizeLinear", "image", "image_quantized"),
        ("DequantizeLinear", "image_quantized", "image_dequantized"),
        ("DequantizeLinear", "stem.weight_quantized", "stem.weight_dequantized"),
        ("Conv", "image_dequantized", "stem"),
        ("Relu", "stem", "identity"),
        ("QuantizeLinear", "identity", "identity_quantized"),
        ("DequantizeLinear", "identity_quantized", "identity_dequantized"),
        ("DequantizeLinear", "conv1.weight_quantized", "conv1.weight_dequantized"),
        ("Conv", "identity_dequantized", "conv1"),
        ("Relu", "conv1", "relu1"),
        ("QuantizeLinear", "relu1", "relu1_quantized"),
        ("DequantizeLinear", "relu1_quantized", "relu1_dequantized"),
    ]
    residual = next(node for node in model.proto.graph.node if node.op_type == "Add")
    assert list(residual.input) == ["conv2", "identity_dequantized"]


@pytest.mark.parametrize(("name", "axis"), [("conv", 0), ("transposed", 1)])
def test_layers_compute_with_each_channel_rounded_on_its_own_grid(name: str, axis: int) -> None:
    """The same numbers as FP32 layers whose constants were rounded by numpy and whose inputs are not rounded."""
    proto = GRAPHS[name]()
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    for tensor in expected.graph.initializer:
        if tensor.name in ("conv1.weight", "conv2.weight", "conv.weight", "up.weight"):
            values = numpy_helper.to_array(tensor)
            along_axis = axis if tensor.name == "up.weight" else 0
            scales = weight_scales(values, along_axis, WeightBits.EIGHT)
            codes = quantize_weights(values, scales, along_axis, WeightBits.EIGHT)
            rounded = dequantize(codes, along(scales, along_axis, values.ndim))
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    model = quantized(proto)
    # The quantizers of activations are taken out: what is left differs by the weights alone.
    written = onnx.ModelProto()
    written.CopyFrom(model.proto)
    names = {
        node.output[0]: node.input[0].removesuffix("_quantized")
        for node in written.graph.node
        if node.op_type == "DequantizeLinear" and "weight" not in node.input[0]
    }
    for node in written.graph.node:
        for index, source in enumerate(node.input):
            node.input[index] = names.get(source, source)
    feeds = {"image": onnx_graphs.image_rows(2)}
    found = ReferenceSession(written.SerializeToString(), threads=1).run(feeds)["scores"]
    wanted = ReferenceSession(expected.SerializeToString(), threads=1).run(feeds)["scores"]
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_products_of_two_activations_are_those_of_their_rounded_factors() -> None:
    graph = GraphBuilder()
    graph.node("Transpose", ["k"], "turned", perm=[0, 2, 1])
    graph.node("Softmax", [graph.node("MatMul", ["q", "turned"], "scores")], "y")
    proto = graph.model([floats(name, "n", 6, 32) for name in "qk"], [floats("y", "n", 6, 6)])
    model = from_proto(onnx.shape_inference.infer_shapes(proto))
    placement = place(model, attention=True)
    result = quantize_model(model, placement, {"q": 2.0, "turned": 4.0}, weight_bits=8)
    onnx.checker.check_model(result.proto, full_check=True)
    random = np.random.default_rng(3)
    rows = {name: random.normal(size=(5, 6, 32)).astype(np.float32) for name in "qk"}
    outputs = ["y", next(node.output[0] for node in result.proto.graph.node if node.op_type == "MatMul")]
    session = ReferenceSession(result.proto.SerializeToString(), outputs=outputs, threads=1)
    q, k = (
        dequantize(quantize(rows[name], activation_scale(top), low=-128, high=127), activation_scale(top))
        for name, top in (("q", 2.0), ("k", 4.0))
    )
    found = np.asarray(session.run(rows)[outputs[1]], np.float32)
    np.testing.assert_allclose(found, q @ k.swapaxes(1, 2), rtol=1e-5, atol=1e-5)
