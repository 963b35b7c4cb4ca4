import pytest
from onnx import helper

from engines.model.model import from_proto
from engines.options import Precision
from engines.quantization.float8_kernels import float8_convolution_reason
from engines.quantization.placement import place
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def reason(*shape: int, operator: str = "Conv", group: int = 1) -> str | None:
    graph = GraphBuilder()
    graph.weight("w", *shape)
    return float8_convolution_reason(
        helper.make_node(operator, ["x", "w"], ["y"], group=group), graph.initializers[0]
    )


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((17, 17, 3, 3), None),
        ((64, 16, 3, 3), "it has too few channels (from 16 to 64 in a group) to gain from FP8"),
        ((16, 64, 1, 1), "it has too few channels (from 64 to 16 in a group) to gain from FP8"),
        ((64, 32, 4, 8), None),
        ((64, 32, 32), None),
        ((64, 32, 3, 11), "its kernel of 3 x 11 is larger than the 32 positions that FP8 kernels take"),
        ((64, 32, 3, 3, 4), "its kernel of 3 x 3 x 4 is larger than the 32 positions that FP8 kernels take"),
    ],
)
def test_few_channels_and_large_kernels_stay_floating(shape: tuple[int, ...], words: str | None) -> None:
    assert reason(*shape) == words


def test_channels_are_counted_in_each_group() -> None:
    assert (
        reason(64, 1, 3, 3, group=64) == "it has too few channels (from 1 to 64 in a group) to gain from FP8"
    )


def test_transposed_convolutions_have_no_kernel() -> None:
    assert reason(64, 64, 2, 2, operator="ConvTranspose") == (
        "it is a transposed convolution, which has no FP8 kernel"
    )


def test_placement_follows_the_rules_of_its_precision() -> None:
    model = from_proto(onnx_graphs.conv_net(channels=32))
    assert [weight.use.node for weight in place(model).weights] == ["conv1_node", "conv2_node"]
    found = place(model, precision=Precision.FP8)
    assert [weight.use.node for weight in found.weights] == ["conv2_node"]
    assert [activation.tensor for activation in found.activations] == ["relu1"]
    reasons = {layer.node: layer.reason for layer in found.skipped}
    assert reasons["conv1_node"] == "it has too few channels (from 3 to 32 in a group) to gain from FP8"


def test_matrix_products_are_placed_as_for_int8() -> None:
    graph = GraphBuilder()
    graph.node("MatMul", ["x", graph.weight("w", 16, 16)], "y")
    model = from_proto(graph.model([floats("x", "n", 16)], [floats("y", "n", 16)]))
    assert place(model, precision=Precision.FP8) == place(model)
    assert place(model).weights
