from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines.formats import sqnr_db
from engines.model.model import from_proto
from engines.options import Precision
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.quantization.unsigned import keep_quantizers, quantizers_are_kept, refine_unsigned
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def quantized(
    proto: onnx.ModelProto, threshold: float = 4.0, precision: Precision = Precision.INT8
) -> onnx.ModelProto:
    model = from_proto(proto)
    placement = place(model)
    thresholds = dict.fromkeys(tensors(placement), threshold)
    return quantize_model(model, placement, thresholds, weight_bits=8, precision=precision).proto


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Type of the codes of every quantized activation."""
    constants = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    return {
        node.input[0]: constants[node.input[2]]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_outputs_of_relu_become_unsigned_and_the_image_does_not() -> None:
    refined = refine_unsigned(quantized(onnx_graphs.conv_net()))
    onnx.checker.check_model(refined, full_check=True)
    assert types(refined) == {"image": TensorProto.INT8, "relu1": TensorProto.UINT8}


def test_fp8_is_left_alone() -> None:
    proto = quantized(onnx_graphs.conv_net(opset=21), precision=Precision.FP8)
    assert refine_unsigned(proto) == proto
    assert types(proto)["relu1"] == TensorProto.FLOAT8E4M3FN


def test_range_stays_and_the_step_halves() -> None:
    proto = quantized(onnx_graphs.conv_net())
    refined = refine_unsigned(proto)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in refined.graph.initializer}
    node = next(node for node in refined.graph.node if node.input[0] == "relu1")
    assert values[node.input[1]] == pytest.approx(4.0 / 255)


def test_answers_come_closer_to_fp32() -> None:
    model = from_proto(onnx_graphs.residual_net(channels=32))
    rows = {"image": onnx_graphs.image_rows(64)}
    right = ReferenceSession(model.proto.SerializeToString(), threads=1).run(rows)["scores"]
    plain = quantized(onnx_graphs.residual_net(channels=32), 6.0)
    found_db = [
        sqnr_db(right, ReferenceSession(proto.SerializeToString(), threads=1).run(rows)["scores"])
        for proto in (plain, refine_unsigned(plain))
    ]
    assert found_db[1] > found_db[0] + 0.3


def fed_by(
    operator: str, *, inputs: Sequence[str] = ("x",), constants: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    graph = GraphBuilder()
    for name, value in (constants or {}).items():
        graph.constant(name, np.asarray(value, np.float32))
    graph.node(operator, list(inputs), "a")
    graph.node("MatMul", ["a", graph.weight("w", 32, 32)], "y")
    return graph.model([floats("x", "n", 32)], [floats("y", "n", 32)])


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (fed_by("Sigmoid"), TensorProto.UINT8),
        (fed_by("Softmax"), TensorProto.UINT8),
        (fed_by("Clip", inputs=("x", "low", "high"), constants={"low": 0.0, "high": 6.0}), TensorProto.UINT8),
        (fed_by("Clip", inputs=("x", "low"), constants={"low": -1.0}), TensorProto.INT8),
        (fed_by("Clip", inputs=("x", "", "high"), constants={"high": 6.0}), TensorProto.INT8),
        (fed_by("Tanh"), TensorProto.INT8),
        (fed_by("Add", inputs=("x", "c"), constants={"c": np.ones(32)}), TensorProto.INT8),
        (fed_by("Identity"), TensorProto.INT8),
    ],
)
def test_only_what_the_graph_proves_is_unsigned(proto: onnx.ModelProto, expected: int) -> None:
    assert types(refine_unsigned(quantized(proto))) == {"a": expected}


@pytest.mark.parametrize(("addend", "expected"), [(1.0, TensorProto.UINT8), (-1.0, TensorProto.INT8)])
def test_sums_are_unsigned_where_all_addends_are(addend: float, expected: int) -> None:
    graph = GraphBuilder()
    graph.node("Relu", ["x"], "r")
    graph.node("Add", ["r", graph.constant("c", np.full(32, addend, np.float32))], "a")
    graph.node("MatMul", ["a", graph.weight("w", 32, 32)], "y")
    proto = graph.model([floats("x", "n", 32)], [floats("y", "n", 32)])
    assert types(refine_unsigned(quantized(proto))) == {"a": expected}


def test_model_that_was_given_is_not_changed() -> None:
    proto = quantized(onnx_graphs.conv_net())
    before = proto.SerializeToString(deterministic=True)
    refine_unsigned(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_quantizers_that_are_to_be_kept_stay_as_they_are() -> None:
    proto = quantized(onnx_graphs.conv_net())
    onnx.helper.set_model_props(proto, {"author": "someone"})
    assert not quantizers_are_kept(proto)
    keep_quantizers(proto)
    keep_quantizers(proto)
    assert quantizers_are_kept(proto)
    assert {entry.key: entry.value for entry in proto.metadata_props}["author"] == "someone"
    assert len(proto.metadata_props) == 2
    assert refine_unsigned(proto) == proto
