import numpy as np
import onnx
import pytest

from engines.model.model import from_proto
from engines.quantization.placement import place
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def placed(
    proto: onnx.ModelProto,
) -> tuple[dict[str, list[tuple[str, int]]], list[tuple[str, str, int]], dict[str, str]]:
    """The placement in short: activations with their consumers, weights with their axes, skipped nodes."""
    placement = place(from_proto(onnx.shape_inference.infer_shapes(proto)))
    activations = {
        activation.tensor: [(use.node, use.index) for use in activation.uses]
        for activation in placement.activations
    }
    weights = [(weight.initializer, weight.use.node, weight.axis) for weight in placement.weights]
    return activations, weights, {skipped.node: skipped.reason for skipped in placement.skipped}


def test_convolutions_take_quantized_activations_and_weights_and_give_floats() -> None:
    activations, weights, _ = placed(onnx_graphs.conv_net())
    assert activations == {"image": [("conv1_node", 0)], "relu1": [("conv2_node", 0)]}
    assert weights == [("conv1.weight", "conv1_node", 0), ("conv2.weight", "conv2_node", 0)]


def test_residual_add_takes_the_identity_quantized_and_its_own_convolution_as_it_is() -> None:
    activations, _, _ = placed(onnx_graphs.residual_net())
    assert activations["identity"] == [("conv1_node", 0), ("residual_node", 1)]
    assert not any(tensor == "conv2" for tensor in activations)


def two_convolutions_added(first_operand: str, second_operand: str) -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("short.weight", 16, 3, 1, 1)], "short")
    graph.node("Conv", ["image", graph.weight("long.weight", 16, 3, 1, 1)], "long")
    graph.node("Add", [first_operand, second_operand], "sum")
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("sum", "n", 16, 8, 8)])


@pytest.mark.parametrize(("operands", "index"), [(("short", "long"), 0), (("long", "short"), 1)])
def test_of_two_convolutions_that_are_added_the_earlier_one_is_the_residual(
    operands: tuple[str, str], index: int
) -> None:
    activations, _, _ = placed(two_convolutions_added(*operands))
    assert activations == {"image": [("short_node", 0), ("long_node", 0)], "short": [("sum_node", index)]}


def test_of_two_convolutions_that_are_added_the_one_already_quantized_for_a_layer_is_the_residual() -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("early.weight", 16, 3, 1, 1)], "early")
    graph.node("Conv", ["image", graph.weight("block.weight", 16, 3, 1, 1)], "block")
    graph.node("Conv", ["block", graph.weight("next.weight", 16, 16, 1, 1)], "next")
    graph.node("Add", ["early", "block"], "sum")
    outputs = [floats("sum", "n", 16, 8, 8), floats("next", "n", 16, 8, 8)]
    activations, _, _ = placed(graph.model([floats("image", "n", 3, 8, 8)], outputs))
    assert activations["block"] == [("next_node", 0), ("sum_node", 1)]
    assert "early" not in activations


def residual_sum(*, identity: str = "", after: str = "", convolution: str = "w") -> onnx.ModelProto:
    """x -> identity -> (itself + its 3x3 convolution, 16 channels, 8x8) -> after."""
    graph = GraphBuilder()
    image = graph.constant("image_shape", np.array([0, 16, 8, 8], np.int64))
    tokens = graph.constant("tokens_shape", np.array([0, 16, 64], np.int64))
    graph.weight("w", 16, 16, 3, 3)
    source = "x"
    if identity == "Reshape":
        source = graph.node("Reshape", [graph.node("Reshape", ["x", tokens], "tokens"), image], "identity")
    elif identity:
        source = graph.node(identity, ["x"], "identity")
    weights = graph.node("Identity", ["w"], "computed") if convolution == "computed" else "w"
    result = graph.node("Conv", [source, weights], "conv", pads=[1, 1, 1, 1])
    if convolution == "BatchNormalization":
        result = onnx_graphs.batch_norm(graph, "conv", "normalized", 16)
    elif convolution == "Relu":
        result = graph.node("Relu", ["conv"], "relu")
    graph.node("Add", [source, result], "sum")
    if after == "LayerNormalization":
        graph.node("Reshape", ["sum", tokens], "flat")
        graph.node("Transpose", ["flat"], "turned", perm=[0, 2, 1])
        graph.node("LayerNormalization", ["turned", graph.constant("gain", np.ones(16, np.float32))], "y")
    else:
        graph.node("Relu", ["sum"], "y")
    return graph.model(
        [floats("x", "n", 16, 8, 8)], [floats("y", *("n", None, None, None)[: 3 if after else 4])]
    )


@pytest.mark.parametrize("identity", ["", "Relu"])
@pytest.mark.parametrize("convolution", ["w", "BatchNormalization"])
def test_identity_of_a_residual_sum_is_quantized_whatever_computed_it(
    identity: str, convolution: str
) -> None:
    proto = residual_sum(identity=identity, convolution=convolution)
    activations, _, _ = placed(proto)
    assert activations["identity" if identity else "x"] == [("conv_node", 0), ("sum_node", 0)]


@pytest.mark.parametrize(
    "case",
    [
        {"identity": "Reshape"},
        {"after": "LayerNormalization"},
        {"convolution": "Relu"},
        {"convolution": "computed"},
    ],
    ids=["tokens as image", "tokens normalized", "no convolution straight in front", "floating convolution"],
)
def test_sum_that_fuses_with_no_convolution_or_belongs_to_a_transformer_stays_floating(
    case: dict[str, str],
) -> None:
    activations, _, _ = placed(residual_sum(**case))
    assert not any(node == "sum_node" for uses in activations.values() for node, _ in uses)


@pytest.mark.parametrize("shape", [("n", 16, 1, 1), ("n", 1, 8, 8), (16, 8, 8)])
def test_sum_that_broadcasts_is_no_residual(shape: tuple[int | str, ...]) -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 16, 3, 1, 1)], "conv")
    graph.node("Add", ["conv", "x"], "sum")
    inputs = [floats("image", "n", 3, 8, 8), floats("x", *shape)]
    assert list(placed(graph.model(inputs, [floats("sum", "n", 16, 8, 8)]))[0]) == ["image"]


def test_tensor_around_pooling_is_quantized_once_in_front_of_its_layer() -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w1", 16, 3, 3, 3)], "conv1")
    graph.node("MaxPool", ["conv1"], "pooled", kernel_shape=[2, 2])
    graph.node("Conv", ["pooled", graph.weight("w2", 16, 16, 3, 3)], "conv2")
    activations, _, _ = placed(graph.model([floats("image", "n", 3, 8, 8)], [floats("conv2", "n", 16, 1, 1)]))
    assert activations == {"image": [("conv1_node", 0)], "pooled": [("conv2_node", 0)]}


def test_addition_that_no_convolution_feeds_is_left_alone() -> None:
    graph = GraphBuilder()
    graph.node("Relu", ["x"], "relu")
    graph.node("Add", ["relu", "x"], "sum")
    assert placed(graph.model([floats("x", "n", 16)], [floats("sum", "n", 16)])) == ({}, [], {})


def test_addition_of_a_constant_or_of_a_tensor_to_itself_is_no_residual() -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 16, 3, 1, 1)], "conv")
    graph.node("Add", ["conv", graph.constant("bias", np.ones((16, 1, 1), np.float32))], "biased")
    graph.node("Add", ["conv", "conv"], "double")
    graph.node("Add", ["biased", "double"], "sum")
    activations, _, _ = placed(graph.model([floats("image", "n", 3, 8, 8)], [floats("sum", "n", 16, 8, 8)]))
    assert list(activations) == ["image"]


def test_depthwise_convolution_has_a_scale_per_channel() -> None:
    _, weights, _ = placed(onnx_graphs.depthwise_net())
    assert {axis for _, _, axis in weights} == {0}
    assert len(weights) == 3


def test_transposed_convolution_counts_output_channels_along_axis_one() -> None:
    _, weights, skipped = placed(onnx_graphs.conv_transpose_net())
    assert ("up.weight", "up_node", 1) in weights
    assert "up_node" not in skipped


def test_transposed_convolution_in_groups_stays_floating() -> None:
    _, weights, skipped = placed(onnx_graphs.conv_transpose_net(group=4))
    assert "up.weight" not in [initializer for initializer, _, _ in weights]
    assert skipped["up_node"] == "it is a transposed convolution in 4 groups, which has no 8-bit kernel"


def gemm(rows: int, columns: int, **attributes: int) -> onnx.ModelProto:
    graph = GraphBuilder()
    shape = (columns, rows) if attributes.get("transB") else (rows, columns)
    graph.node("Gemm", ["x", graph.weight("w", *shape), graph.weight("b", columns)], "y", **attributes)
    size: tuple[int | str, int] = ("n", rows) if not attributes.get("transA") else (rows, 5)
    return graph.model([floats("x", *size)], [floats("y", None, columns)])


@pytest.mark.parametrize(("attributes", "axis"), [({}, 1), ({"transB": 1}, 0)])
def test_gemm_counts_output_channels_along_the_axis_of_its_layout(
    attributes: dict[str, int], axis: int
) -> None:
    assert placed(gemm(32, 16, **attributes)) == ({"x": [("y_node", 0)]}, [("w", "y_node", axis)], {})


@pytest.mark.parametrize(("rows", "columns"), [(15, 64), (64, 15)])
def test_matrices_too_small_to_gain_stay_floating(rows: int, columns: int) -> None:
    activations, weights, skipped = placed(gemm(rows, columns, transB=1))
    assert (activations, weights) == ({}, [])
    assert skipped == {"y_node": f"its weights are too small ({columns} x {rows}) to gain from 8 bits"}


def test_gemm_of_a_transposed_input_stays_floating() -> None:
    assert placed(gemm(32, 16, transA=1))[2] == {"y_node": "its input is transposed"}


def matmul(left: str, right: str, constants: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    graph = GraphBuilder()
    for name, shape in constants.items():
        graph.weight(name, *shape)
    graph.node("MatMul", [left, right], "y")
    inputs = [floats(name, "n", 4, 32) for name in {left, right} - set(constants)]
    return graph.model(inputs, [floats("y", "n", None, None)])


def test_matmul_by_constant_weights_counts_output_channels_along_the_last_axis() -> None:
    assert placed(matmul("x", "w", {"w": (32, 24)})) == ({"x": [("y_node", 0)]}, [("w", "y_node", 1)], {})


@pytest.mark.parametrize(
    ("left", "right", "constants", "reason"),
    [
        ("x", "z", {}, "its weights are not constant"),
        ("w", "x", {"w": (24, 4)}, "its constant stands on the left"),
        ("x", "w", {"w": (3, 32, 24)}, "its weights have 3 dimensions"),
    ],
)
def test_other_matrix_products_stay_floating_and_the_report_says_why(
    left: str, right: str, constants: dict[str, tuple[int, ...]], reason: str
) -> None:
    assert placed(matmul(left, right, constants)) == ({}, [], {"y_node": reason})


def test_layer_in_half_precision_stays_floating() -> None:
    graph = GraphBuilder()
    graph.constant("w", np.ones((32, 32), np.float16))
    graph.node("Cast", ["x"], "half", to=10)
    graph.node("MatMul", ["half", "w"], "y")
    graph.node("Cast", ["y"], "z", to=1)
    _, _, skipped = placed(graph.model([floats("x", "n", 32)], [floats("z", "n", 32)]))
    assert skipped == {"y_node": "it does not compute in float32"}
