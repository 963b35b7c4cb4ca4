import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.errors import CompileError
from engines.model.model import Model, from_proto
from engines.model.tensors import Array
from engines.model.wiring import producers
from engines.options import Precision
from engines.quantization.half_precision import halve_rest
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats, image_rows


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def computes_in(proto: onnx.ModelProto, operator: str) -> list[int]:
    """The type of the first input of each node of an operator, in order."""
    known = types(proto)
    return [known[node.input[0]] for node in proto.graph.node if node.op_type == operator]


def magnitudes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, float]:
    """What calibration would see of every floating tensor."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    names = [
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    seen = ReferenceSession(model, outputs=names, threads=1).run(feeds) | dict(feeds)
    return {name: float(np.abs(values).max()) for name, values in seen.items() if values.dtype == np.float32}


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """In numpy, node by node in the types of the graph: onnxruntime computes FP16 in float32 on a processor."""
    names = [value.name for value in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, dict(feeds)), strict=True))


def reads_straight(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Which inputs of each layer come straight from a DequantizeLinear, by node."""
    made = producers(proto.graph)
    return {
        node.name: [
            place
            for place, name in enumerate(node.input)
            if name in made and made[name].op_type == "DequantizeLinear"
        ]
        for node in proto.graph.node
        if node.op_type in ("Add", "Conv", "ConvTranspose", "Gemm")
    }


def sqnr_db(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    noise = np.square(np.subtract(wanted, found)).sum()
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else math.inf


def quantized(proto: onnx.ModelProto, precision: Precision = Precision.INT8, threshold: float = 4.0) -> Model:
    model = from_proto(onnx.shape_inference.infer_shapes(proto))
    placement = place(model, precision=precision)
    thresholds = dict.fromkeys(tensors(placement), threshold)
    return quantize_model(model, placement, thresholds, weight_bits=8, precision=precision)


HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.mark.parametrize(
    "name", ["conv_net", "residual_net", "depthwise_net", "conv_transpose_net", "resize_net"]
)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_an_8_bit_model_answers_the_same_with_its_rest_in_half(name: str, precision: Precision) -> None:
    proto = getattr(onnx_graphs, name)(opset=21, channels=32)
    feeds = {"image": image_rows(8)}
    model = quantized(proto, precision).proto
    before = model.SerializeToString(deterministic=True)
    halved = halve_rest(model, magnitudes(proto, feeds))
    assert model.SerializeToString(deterministic=True) == before
    wanted, found = run(model, feeds), run(halved, feeds)
    assert found["scores"].dtype == np.float32
    assert sqnr_db(wanted["scores"], found["scores"]) > 30
    assert computes_in(halved, "QuantizeLinear") == [HALF] * len(computes_in(model, "QuantizeLinear"))
    assert reads_straight(halved) == reads_straight(model)


def test_a_model_of_an_old_opset_is_brought_to_one_with_scales_in_half() -> None:
    proto = onnx_graphs.conv_net(opset=17)
    halved = halve_rest(quantized(proto).proto, magnitudes(proto, {"image": image_rows(4)}))
    assert halved.opset_import[0].version >= 21
    assert set(computes_in(halved, "QuantizeLinear")) == {HALF}


def chain(*steps: tuple[str, float]) -> onnx.ModelProto:
    """`x` [n, 4] through one operator with a constant after another, to `y`; between are `step0`, `step1`, …."""
    graph = GraphBuilder(opset=21)
    name = "x"
    for number, (operator, value) in enumerate(steps):
        constant = graph.constant(f"constant{number}", np.array(value, np.float32))
        name = graph.node(operator, [name, constant], "y" if number == len(steps) - 1 else f"step{number}")
    return graph.model([floats("x", "n", 4)], [floats("y", "n", 4)])


class TestValuesThatHalfDoesNotHold:
    def test_what_passes_512_is_computed_in_single_and_the_rest_in_half(self) -> None:
        proto = chain(("Add", 1.0), ("Mul", 300.0), ("Mul", 2.0), ("Mul", 0.001), ("Add", 1.0))
        feeds = {"x": np.array([[1, -1, 0.5, 1]], np.float32)}
        halved = halve_rest(proto, magnitudes(proto, feeds))
        assert computes_in(halved, "Mul") == [SINGLE, SINGLE, SINGLE]
        assert computes_in(halved, "Add") == [HALF, HALF]

    def test_values_past_the_end_of_half_survive_between_nodes_in_single(self) -> None:
        proto = chain(("Mul", 1e6), ("Add", 3.0), ("Mul", 1e-6))
        feeds = {"x": np.array([[1, -1, 0.5, 1]], np.float32)}
        halved = halve_rest(proto, magnitudes(proto, feeds))
        np.testing.assert_allclose(run(halved, feeds)["y"], run(proto, feeds)["y"], rtol=1e-6)
        assert not any(node.op_type == "Cast" for node in halved.graph.node)

    def test_an_input_past_the_end_of_half_reaches_its_node_whole(self) -> None:
        proto = chain(("Mul", 1e-5), ("Add", 1.0), ("Mul", 2.0))
        feeds = {"x": np.array([[1e6, -1e6, 123456, 1]], np.float32)}
        halved = halve_rest(proto, magnitudes(proto, feeds) | {"constant0": 1.0})
        np.testing.assert_allclose(run(halved, feeds)["y"], run(proto, feeds)["y"], rtol=2e-3)

    def test_a_tensor_that_calibration_has_not_seen_stays_single(self) -> None:
        proto = chain(("Add", 1.0), ("Mul", 2.0), ("Add", 1.0))
        seen = magnitudes(proto, {"x": np.ones((1, 4), np.float32)})
        del seen["step0"]
        assert computes_in(halve_rest(proto, seen), "Mul") == [SINGLE]

    @pytest.mark.parametrize("value", [1e-12, 1e-5, -3e38])
    def test_a_constant_that_half_does_not_hold_is_read_in_single(self, value: float) -> None:
        proto = chain(("Add", 1.0), ("Max" if value < 0 else "Add", value), ("Add", 1.0))
        halved = halve_rest(proto, magnitudes(proto, {"x": np.ones((1, 4), np.float32)}))
        values = {
            float(numpy_helper.to_array(tensor))
            for tensor in halved.graph.initializer
            if tensor.data_type == SINGLE
        }
        assert np.float32(value) in values

    def test_a_constant_that_both_kinds_of_nodes_read_is_rounded_for_one_kind_alone(self) -> None:
        graph = GraphBuilder(opset=21)
        third = graph.constant("third", np.array(1 / 3, np.float32))
        graph.node("Mul", ["x", third], "small")
        graph.node("Mul", ["large", third], "larger")
        proto = graph.model(
            [floats("x", "n", 4), floats("large", "n", 4)],
            [floats("small", "n", 4), floats("larger", "n", 4)],
        )
        feeds = {"x": np.ones((1, 4), np.float32), "large": np.full((1, 4), 1e5, np.float32)}
        found = run(halve_rest(proto, magnitudes(proto, feeds)), feeds)
        assert found["larger"].tolist() == run(proto, feeds)["larger"].tolist()
        assert found["small"].tolist() == [[float(np.float16(1 / 3))] * 4]


def decomposed_norm(epsilon: float = 1e-5, *, power: bool = True) -> onnx.ModelProto:
    """LayerNormalization of `x` [n, 32] as exporters wrote it before it was an operator."""
    graph = GraphBuilder(opset=21)
    one = graph.constant("one", np.array(1, np.float32))
    axes = graph.constant("axes", np.array([-1], np.int64))
    graph.node("Neg", ["x"], "raised")
    graph.node("ReduceMean", ["raised", axes], "mean")
    graph.node("Sub", ["raised", "mean"], "centred")
    two = graph.constant("two", np.array(2, np.float32))
    graph.node(*(("Pow", ["centred", two]) if power else ("Mul", ["centred", "centred"])), "square")
    graph.node("ReduceMean", ["square", axes], "variance")
    graph.node("Add", ["variance", graph.constant("epsilon", np.array(epsilon, np.float32))], "shifted")
    graph.node("Sqrt", ["shifted"], "deviation")
    graph.node("Div", ["centred", "deviation"], "normal")
    graph.node("Add", ["normal", one], "y")
    return graph.model([floats("x", "n", 32)], [floats("y", "n", 32)])


class TestNormalization:
    @pytest.mark.parametrize("power", [True, False])
    def test_squares_and_means_up_to_the_root_stay_single(self, power: bool) -> None:
        proto = decomposed_norm(1e-3, power=power)
        feeds = {"x": np.random.default_rng(3).normal(size=(4, 32)).astype(np.float32)}
        halved = halve_rest(proto, magnitudes(proto, feeds))
        assert computes_in(halved, "ReduceMean") == [SINGLE, SINGLE]
        assert computes_in(halved, "Pow" if power else "Mul") == [SINGLE]
        assert computes_in(halved, "Sqrt") == [SINGLE]
        assert computes_in(halved, "Div") == [HALF]
        assert computes_in(halved, "Add") == [SINGLE, HALF]

    def test_rows_of_small_spread_are_not_lost(self) -> None:
        """Their variance, 1e-6, has 4 bits in FP16, and the epsilon none."""
        proto = decomposed_norm(1e-12)
        feeds = {"x": np.random.default_rng(3).normal(0, 1e-3, size=(4, 32)).astype(np.float32)}
        halved = halve_rest(proto, magnitudes(proto, feeds))
        assert sqnr_db(run(proto, feeds)["y"], run(halved, feeds)["y"]) > 50

    def test_softmax_stays_single(self) -> None:
        graph = GraphBuilder(opset=21)
        graph.node("Softmax", [graph.node("Neg", ["x"], "scores")], "y")
        proto = graph.model([floats("x", "n", 4)], [floats("y", "n", 4)])
        halved = halve_rest(proto, magnitudes(proto, {"x": np.ones((1, 4), np.float32)}))
        assert computes_in(halved, "Softmax") == [SINGLE]
        assert computes_in(halved, "Neg") == [HALF]


class TestQuantizers:
    def test_a_scale_that_half_would_move_keeps_its_layer_and_both_quantizers_single(self) -> None:
        proto = onnx_graphs.conv_net(opset=21)
        weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "conv2.weight")
        tiny = numpy_helper.to_array(weight).copy()
        tiny[0] *= 1e-4
        weight.CopyFrom(numpy_helper.from_array(tiny, weight.name))
        model = quantized(proto).proto
        halved = halve_rest(model, magnitudes(proto, {"image": image_rows(4)}))
        known, made = types(halved), producers(halved.graph)
        first, second = (node for node in halved.graph.node if node.op_type == "Conv")
        assert known[first.input[0]] == HALF
        assert {known[name] for name in second.input[:2]} == {SINGLE}
        assert {made[name].op_type for name in second.input[:2]} == {"DequantizeLinear"}
        assert known[made[made[second.input[0]].input[0]].input[0]] == SINGLE

    def test_a_layer_whose_output_passes_512_reads_8_bits_all_the_same(self) -> None:
        proto = onnx_graphs.conv_net(opset=21)
        seen = magnitudes(proto, {"image": image_rows(4)}) | {"conv2": 600.0}
        halved = halve_rest(quantized(proto).proto, seen)
        made = producers(halved.graph)
        second = [node for node in halved.graph.node if node.op_type == "Conv"][1]
        assert {made[name].op_type for name in second.input[:2]} == {"DequantizeLinear"}

    def test_scales_are_rounded_and_not_lost(self) -> None:
        proto = onnx_graphs.conv_net(opset=21)
        model = quantized(proto).proto
        halved = halve_rest(model, magnitudes(proto, {"image": image_rows(4)}))
        before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        scales = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in halved.graph.initializer
            if tensor.name.endswith("_scale")
        }
        assert scales
        for name, scale in scales.items():
            assert scale.dtype == np.float16
            np.testing.assert_allclose(scale, before[name], rtol=1 / 512)


def test_a_model_without_scales_in_half_is_refused_with_the_remedy() -> None:
    proto = chain(("Add", 1.0))
    # No converter brings a model to a newer opset that it does not know.
    proto.graph.node.append(helper.make_node("Upsample", ["x", "constant0"], ["unused"], name="upsample"))
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 17))
    with pytest.raises(CompileError, match=r"opset 17.*\"rest\": \"fp32\""):
        halve_rest(proto, {})
