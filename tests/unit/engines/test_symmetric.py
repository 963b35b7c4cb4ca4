from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.model.model import from_proto
from engines.model.tensors import Array
from engines.phases.preparing import prepare
from engines.quantization.quantizers import read_quantizers
from engines.quantization.symmetric import make_symmetric
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.arrived_graphs import like_nncf, like_pytorch, pair, quantize
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

X = np.random.default_rng(3).normal(0, 2, (5, 4, 4)).astype(np.float32)


def symmetric(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    prepared = prepare(from_proto(proto)).proto
    found, left = make_symmetric(prepared, read_quantizers(prepared.graph))
    onnx.checker.check_model(found, full_check=True)
    return found, left


def run(proto: onnx.ModelProto, x: Array = X) -> Array:
    name = proto.graph.input[0].name
    values = ReferenceSession(proto.SerializeToString(), threads=1).run({name: x})
    return np.asarray(next(iter(values.values())))


def weighed(codes: Array, scale: float, zero_point: int) -> onnx.ModelProto:
    """x times a constant of these codes, and a pair with the zero point 128 in front."""
    graph = GraphBuilder(opset=21)
    names = [
        graph.constant("w", codes),
        graph.constant("ws", np.array(scale, np.float32)),
        graph.constant("wz", np.array(zero_point, codes.dtype)),
    ]
    graph.node("DequantizeLinear", names, "wr")
    graph.node("MatMul", [pair(graph, "x", 0.03, 128, np.uint8), "wr"], "y")
    return graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])


def unsigned(*values: int) -> Array:
    return np.resize(np.array(values, np.uint8), (4, 4))


def all_symmetric(proto: onnx.ModelProto) -> bool:
    return all(quantizer.symmetric for quantizer in read_quantizers(proto.graph).values())


def test_unsigned_codes_around_128_become_signed_ones_around_0() -> None:
    proto = weighed(unsigned(0, 1, 127, 128, 255), 0.1, 128)
    found, left = symmetric(proto)
    assert left == ()
    assert all_symmetric(found)
    np.testing.assert_array_equal(run(found), run(proto))


def test_saturation_is_the_same() -> None:
    graph = GraphBuilder(opset=21)
    graph.node("Relu", [pair(graph, "x", 0.001, 128, np.uint8)], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    found, left = symmetric(proto)
    assert left == ()
    np.testing.assert_array_equal(run(found), run(proto))


@pytest.mark.parametrize(
    ("codes", "zero_point"),
    [
        (unsigned(0, 100, 200), 80),
        (unsigned(0, 127), 0),
        (np.resize(np.array([-100, 20], np.int8), (4, 4)), 10),
    ],
)
def test_constants_lose_any_zero_point_that_int8_has_room_for(codes: Array, zero_point: int) -> None:
    proto = weighed(codes, 0.1, zero_point)
    found, left = symmetric(proto)
    assert left == ()
    assert all_symmetric(found)
    np.testing.assert_array_equal(run(found), run(proto))


@pytest.mark.parametrize("zero_point", [0, 100])
def test_constants_without_room_are_named_and_stay(zero_point: int) -> None:
    proto = weighed(unsigned(0, 255), 0.1, zero_point)
    found, left = symmetric(proto)
    assert left == ("wr_node",)
    np.testing.assert_array_equal(run(found), run(proto))


@pytest.mark.parametrize(("zero_point", "dtype"), [(0, np.uint8), (127, np.uint8), (1, np.int8)])
def test_other_activations_are_named_and_stay(zero_point: int, dtype: type) -> None:
    graph = GraphBuilder(opset=21)
    graph.node("Relu", [pair(graph, "x", 0.03, zero_point, dtype)], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    found, left = symmetric(proto)
    assert left == ("x_codes_node", "x_real_node")
    np.testing.assert_array_equal(run(found), run(proto))


def moved(operator: str, **attributes: object) -> onnx.ModelProto:
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.03, 128, np.uint8)
    graph.node(operator, [codes], "moved", **attributes)
    graph.node("DequantizeLinear", ["moved", *parameters], "real")
    graph.node("Relu", ["real"], "y")
    return graph.model([floats("x", "n", 4, 4)], [floats("y", "n", None, None)])


def test_codes_may_be_moved_on_their_way() -> None:
    proto = moved("Transpose", perm=[0, 2, 1])
    found, left = symmetric(proto)
    assert left == ()
    assert all_symmetric(found)
    np.testing.assert_array_equal(run(found), run(proto))


def test_codes_that_more_is_done_with_are_left_whole() -> None:
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.03, 128, np.uint8)
    graph.node("Cast", [codes], "number", to=TensorProto.FLOAT)
    graph.node("DequantizeLinear", [codes, *parameters], "real")
    graph.node("Add", ["real", "number"], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    found, left = symmetric(proto)
    assert left == ("x_codes_node", "real_node")
    np.testing.assert_array_equal(run(found), run(proto))


def test_an_output_type_gives_way_to_that_of_the_zero_point() -> None:
    graph = GraphBuilder(opset=21)
    names = [graph.constant("s", np.array(0.03, np.float32)), graph.constant("z", np.array(128, np.uint8))]
    graph.node("QuantizeLinear", ["x", *names], "codes", output_dtype=TensorProto.UINT8)
    graph.node("DequantizeLinear", ["codes", *names], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    found, left = symmetric(proto)
    assert left == ()
    np.testing.assert_array_equal(run(found), run(proto))


@pytest.mark.parametrize(("export", "left"), [(like_nncf, 0), (like_pytorch, 6)])
def test_exports(export: Callable[[], onnx.ModelProto], left: int) -> None:
    assert len(symmetric(export())[1]) == left


def test_every_channel_must_have_the_zero_point_128() -> None:
    proto = weighed(unsigned(128), 0.1, 128)
    prepared = prepare(from_proto(proto)).proto
    graph = prepared.graph
    spread = np.array([128, 128, 128, 127], np.uint8)
    for tensor in graph.initializer:
        if tensor.name == "x_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(spread, tensor.name))
        elif tensor.name == "x_scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 0.03, np.float32), tensor.name))
    found, left = make_symmetric(prepared, read_quantizers(graph))
    assert left == ("x_codes_node", "x_real_node")
    np.testing.assert_array_equal(run(found), run(prepared))
