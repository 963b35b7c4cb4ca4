"""Which differences from another quantizer's placement are meant."""

import onnx
import pytest

from engines.model.model import from_proto
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from loadtests.placement import differences
from loadtests.placement_reasons import QuantizedInput, Wiring, quantized_inputs
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def transformer() -> onnx.ModelProto:
    graph = GraphBuilder(opset=21)
    graph.node("MatMul", ["x", graph.weight("weight", 32, 32)], "values")
    graph.node("MatMul", ["x", "values"], "scores")
    graph.node("Softmax", ["scores"], "shares")
    graph.node("MatMul", ["shares", "values"], "mixed")
    graph.node("Add", ["x", "mixed"], "y")
    return graph.model([floats("x", "n", 32)], [floats("y", "n", 32)])


def test_inputs_are_read_from_the_file_and_named_by_what_the_node_writes() -> None:
    model = from_proto(onnx.shape_inference.infer_shapes(onnx_graphs.residual_net()))
    placement = place(model)
    written = quantize_model(model, placement, dict.fromkeys(tensors(placement), 1.0), weight_bits=8)
    found = {(each.output, each.index) for each in quantized_inputs(written.proto)}
    convolutions = {(name, index) for name in ("stem", "conv1", "conv2") for index in (0, 1)}
    assert found == convolutions | {("residual", 1)}


@pytest.mark.parametrize(
    ("operator", "output", "by_octet", "word"),
    [
        ("Add", "y", False, "residual"),
        ("MatMul", "mixed", False, "softmax"),
        ("MatMul", "scores", True, "queries"),
        ("MatMul", "values", True, "GEMV"),
        ("MatMul", "scores", False, "UNEXPLAINED"),
        ("MatMul", "values", False, "UNEXPLAINED"),
        ("Add", "y", True, "UNEXPLAINED"),
        ("Softmax", "shares", False, "UNEXPLAINED"),
    ],
)
def test_a_difference_has_its_reason_or_is_called_unexplained(
    operator: str, output: str, by_octet: bool, word: str
) -> None:
    one = frozenset({QuantizedInput(operator=operator, output=output, index=0)})
    ours, theirs = (one, frozenset[QuantizedInput]()) if by_octet else (frozenset[QuantizedInput](), one)
    (line,) = differences("graph", Wiring(transformer().graph), ours, theirs)
    assert (line.who, line.operator, line.count) == ("octet" if by_octet else "Model Optimizer", operator, 1)
    assert word in line.reason


def test_a_residual_of_convolutions_that_only_the_other_quantizes_is_unexplained() -> None:
    other = frozenset({QuantizedInput(operator="Add", output="residual", index=0)})
    (line,) = differences("graph", Wiring(onnx_graphs.residual_net().graph), frozenset(), other)
    assert line.reason == "UNEXPLAINED"
