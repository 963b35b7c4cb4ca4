from collections.abc import Callable

import numpy as np
import onnx
import pytest

from engines.formats import sqnr_db
from engines.model.model import Model, from_proto
from engines.model.tensors import Array
from engines.phases.preparing import prepare
from engines.quantization.pairs import fold_constant_codes, without_pairs
from engines.quantization.quantizers import read_quantizers
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.arrived_graphs import like_nncf, like_pytorch, like_tf2onnx, pair, quantize, rows_for
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def removed(proto: onnx.ModelProto) -> Model:
    prepared = prepare(from_proto(proto)).proto
    stored = prepare(from_proto(fold_constant_codes(prepared, read_quantizers(prepared.graph)))).proto
    return prepare(from_proto(without_pairs(stored, read_quantizers(stored.graph))))


def run(proto: onnx.ModelProto, x: Array) -> Array:
    name = proto.graph.input[0].name
    return next(iter(ReferenceSession(proto.SerializeToString(), threads=1).run({name: x}).values()))


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def chain(
    *nodes: tuple[str, dict[str, object]], dtype: type = np.int8, zero_point: int = 0
) -> onnx.ModelProto:
    """x, Q, the nodes, DQ, y: x is [n, 4, 4]."""
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.02, zero_point, dtype)
    for operator, attributes in nodes:
        codes = graph.node(operator, [codes], f"{codes}_{operator}", **attributes)
    graph.node("DequantizeLinear", [codes, *parameters], "y")
    return graph.model([floats("x", "n", 4, 4)], [floats("y", "n", None, None)])


X = np.random.default_rng(3).normal(0, 2, (5, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("export", [like_pytorch, like_nncf, like_tf2onnx])
def test_no_quantizer_is_left_and_the_answers_stay_near(export: Callable[[], onnx.ModelProto]) -> None:
    proto = export()
    floating = removed(proto)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds(floating.proto))
    rows = rows_for(proto, 16)
    assert 20 < sqnr_db(run(proto, rows), run(floating.proto, rows)) < 80


def test_of_a_pair_the_saturation_stays() -> None:
    """A tool may have dropped the ReLU that the zero point implies."""
    found = run(removed(chain(dtype=np.uint8)).proto, X)
    np.testing.assert_array_equal(
        np.asarray(found, np.float32), np.clip(X, np.float32(0), np.float32(0.02) * np.float32(255))
    )
    found = run(removed(chain(dtype=np.int8, zero_point=-28)).proto, X)
    scale = np.float32(0.02)
    np.testing.assert_array_equal(
        np.asarray(found, np.float32), np.clip(X, scale * np.float32(-100), scale * np.float32(155))
    )


def test_saturation_of_channels_is_that_of_each() -> None:
    graph = GraphBuilder(opset=21)
    scales = np.array([0.01, 0.02, 0.005, 0.001], np.float32)
    graph.node("Identity", [pair(graph, "x", scales, axis=1)], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    bounds = scales.reshape(4, 1)
    expected = np.clip(X, bounds * np.float32(-128), bounds * np.float32(127))
    np.testing.assert_array_equal(np.asarray(run(removed(proto).proto, X), np.float32), expected)


@pytest.mark.parametrize(
    "nodes",
    [
        [("Transpose", {"perm": [0, 2, 1]})],
        [("Transpose", {"perm": [0, 2, 1]}), ("Flatten", {"axis": 2})],
    ],
)
def test_codes_may_be_moved_between_q_and_dq(nodes: list[tuple[str, dict[str, object]]]) -> None:
    proto = chain(*nodes)
    floating = removed(proto)
    assert "QuantizeLinear" not in kinds(floating.proto)
    right = np.asarray(run(proto, X), float)
    assert np.abs(right - np.asarray(run(floating.proto, X), float)).max() <= 0.0101


def test_clipped_codes_become_clipped_numbers() -> None:
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.02, 10, np.uint8)
    bounds = [graph.constant("low", np.array(5, np.uint8)), graph.constant("high", np.array(60, np.uint8))]
    graph.node("Clip", [codes, *bounds], "clipped")
    graph.node("DequantizeLinear", ["clipped", *parameters], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    scale = np.float32(0.02)
    expected = np.clip(X, scale * np.float32(-5), scale * np.float32(50))
    np.testing.assert_array_equal(np.asarray(run(removed(proto).proto, X), np.float32), expected)


def test_pairs_whose_codes_are_used_for_more_stay() -> None:
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.02)
    graph.node("DequantizeLinear", [codes, *parameters], "real")
    graph.node("Cast", [codes], "number", to=onnx.TensorProto.FLOAT)
    graph.node("Add", ["real", "number"], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    floating = removed(proto)
    assert "QuantizeLinear" in kinds(floating.proto)
    np.testing.assert_array_equal(np.asarray(run(floating.proto, X), float), np.asarray(run(proto, X), float))


def test_a_dq_of_another_grid_stays_with_its_q() -> None:
    graph = GraphBuilder(opset=21)
    codes, (_, zero) = quantize(graph, "x", 0.02)
    graph.node("DequantizeLinear", [codes, graph.constant("other", np.array(0.04, np.float32)), zero], "y")
    proto = graph.model([floats("x", "n", 4, 4)], [floats("y", "n", 4, 4)])
    floating = removed(proto)
    np.testing.assert_array_equal(np.asarray(run(floating.proto, X), float), np.asarray(run(proto, X), float))


def test_constants_are_stored_as_codes_and_answer_the_same() -> None:
    prepared = prepare(from_proto(like_pytorch()))
    folded = fold_constant_codes(prepared.proto, read_quantizers(prepared.proto.graph))
    folded = prepare(from_proto(folded)).proto
    assert kinds(folded).count("Clip") == 3
    rows = rows_for(folded, 16)
    np.testing.assert_array_equal(
        np.asarray(run(prepared.proto, rows), float), np.asarray(run(folded, rows), float)
    )
    assert folded.ByteSize() < 0.4 * prepared.proto.ByteSize()
    types = [tensor.data_type for tensor in folded.graph.initializer if len(tensor.dims) > 1]
    assert types == [onnx.TensorProto.INT8] * 3
    onnx.checker.check_model(folded, full_check=True)


def test_the_model_itself_is_not_changed() -> None:
    prepared = prepare(from_proto(like_nncf()))
    before = prepared.proto.SerializeToString(deterministic=True)
    without_pairs(prepared.proto, read_quantizers(prepared.proto.graph))
    assert prepared.proto.SerializeToString(deterministic=True) == before


def test_codes_that_are_an_output_of_the_model_stay_codes() -> None:
    graph = GraphBuilder(opset=21)
    codes, parameters = quantize(graph, "x", 0.02)
    graph.node("DequantizeLinear", [codes, *parameters], "y")
    also = onnx.helper.make_tensor_value_info(codes, onnx.TensorProto.INT8, ["n", 4, 4])
    proto = graph.model([floats("x", "n", 4, 4)], [also, floats("y", "n", 4, 4)])
    found = run(removed(proto).proto, X)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(np.asarray(found, int), np.asarray(run(proto, X), int))
