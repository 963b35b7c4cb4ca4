from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.formats import sqnr_db
from engines.runtimes.held_quantizers import hold_quantizers
from engines.runtimes.openvino import OpenVINORuntime
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

SCALE = 0.05


def pair(graph: GraphBuilder, tensor: str, *, zero_point: np.generic) -> str:
    step = graph.constant(f"{tensor}_scale", np.asarray(SCALE, np.float32))
    zero = graph.constant(f"{tensor}_zero", np.asarray(zero_point))
    codes = graph.node("QuantizeLinear", [tensor, step, zero], f"{tensor}_codes")
    return graph.node("DequantizeLinear", [codes, step, zero], f"{tensor}_pair")


def joined(
    zero_point: np.generic, *, in_front: bool = False, operator: str = "Conv", axis: int = 1
) -> onnx.ModelProto:
    """Two copies of the image, joined, quantized and read by a layer of 8-bit weights."""
    graph = GraphBuilder(opset=21)
    copies = [graph.node(kind, ["image"], kind) for kind in ("Neg", "Tanh")]
    if in_front:
        copies = [pair(graph, copy, zero_point=zero_point) for copy in copies]
    features = pair(graph, graph.node("Concat", copies, "joined", axis=axis), zero_point=zero_point)
    channels = 6 if axis == 1 else 3
    codes = graph.random.integers(-127, 128, (channels, channels, 1, 1)).astype(np.int8)
    step, zero = (
        graph.constant("w_scale", np.asarray(0.01, np.float32)),
        graph.constant("w_zero", np.asarray(0, np.int8)),
    )
    weights = graph.node("DequantizeLinear", [graph.constant("w", codes), step, zero], "w_pair")
    graph.node(operator, [features, weights], "scores")
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", channels, None, None)])


def with_class_token(
    zero_point: np.generic, *, rectified: bool = False, codes_move: bool = False
) -> onnx.ModelProto:
    """Patches of the image as tokens, quantized behind their convolution, and a class token in front of them."""
    graph = GraphBuilder(opset=21)
    graph.node(
        "Conv", ["image", graph.weight("w", 16, 3, 2, 2), graph.weight("b", 16)], "patches", strides=[2, 2]
    )
    patches = graph.node("Relu", ["patches"], "rectified") if rectified else "patches"
    parameters = [
        graph.constant("step", np.asarray(SCALE, np.float32)),
        graph.constant("zero", np.asarray(zero_point)),
    ]
    shape = graph.constant("shape", np.array([-1, 16, 16], np.int64))
    found = graph.node("QuantizeLinear", [patches, *parameters], "codes")
    for operator in ("Reshape", "DequantizeLinear") if codes_move else ("DequantizeLinear", "Reshape"):
        inputs = [shape] if operator == "Reshape" else parameters
        found = graph.node(operator, [found, *inputs], f"{operator}_tokens")
    tokens = graph.node("Transpose", [found], "tokens", perm=[0, 2, 1])
    ones = graph.constant("ones", np.array([1, 1], np.int64))
    rows = graph.node("Shape", ["image"], "rows", start=0, end=1)
    target = graph.node("Concat", [rows, ones], "target", axis=0)
    first = graph.node("Expand", [graph.weight("class", 1, 1, 16), target], "first")
    graph.node("Concat", [first, tokens], "scores", axis=1)
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", 17, 16)])


def held(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    hold_quantizers(result)
    return result


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("zero_point", [np.int8(0), np.uint8(128), np.int8(9)])
def test_convolutions_behind_a_signed_concat_answer_as_the_standard_says(
    zero_point: np.generic, axis: int, in_front: bool, tmp_path: Path
) -> None:
    proto = joined(zero_point, in_front=in_front, axis=axis)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    rows = onnx_graphs.image_rows(8)
    right = ReferenceSession(proto.SerializeToString(), threads=1).run({"image": rows})["scores"]
    with OpenVINORuntime().compile(path, threads=1) as engine:
        assert sqnr_db(right, engine.run({"image": rows})["scores"]) > 40


@pytest.mark.parametrize("codes_move", [False, True])
@pytest.mark.parametrize(
    ("zero_point", "rectified"),
    [(np.int8(0), False), (np.uint8(128), False), (np.uint8(0), True), (np.int8(-128), True)],
)
def test_tokens_of_a_quantized_convolution_stay_in_their_places(
    zero_point: np.generic, rectified: bool, codes_move: bool, tmp_path: Path
) -> None:
    proto = with_class_token(zero_point, rectified=rectified, codes_move=codes_move)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    for rows in (onnx_graphs.image_rows(number) for number in (1, 5)):
        right = ReferenceSession(proto.SerializeToString(), threads=1).run({"image": rows})["scores"]
        with OpenVINORuntime().compile(path, threads=1) as engine:
            assert sqnr_db(right, engine.run({"image": rows})["scores"]) > 40


@pytest.mark.parametrize("zero_point", [np.int8(0), np.uint8(128), np.uint8(3)])
def test_tokens_keep_their_values_also_beyond_the_codes(zero_point: np.generic) -> None:
    proto = with_class_token(zero_point)
    changed = held(proto)
    onnx.checker.check_model(changed, full_check=True)
    assert [node.op_type for node in changed.graph.node].count("Max") == 1
    rows = 20 * onnx_graphs.image_rows(8)
    before, after = (
        ReferenceSession(each.SerializeToString(), threads=1).run({"image": rows})["scores"]
        for each in (proto, changed)
    )
    assert np.array_equal(before, after)


def test_convolutions_whose_codes_are_moved_and_not_joined_are_left_alone() -> None:
    proto = with_class_token(np.int8(0))
    [joined_tokens] = [node for node in proto.graph.node if "scores" in node.output]
    joined_tokens.op_type = "Add"
    assert held(proto) == proto


@pytest.mark.parametrize("zero_point", [np.int8(0), np.int8(-5), np.int8(127)])
def test_no_answer_changes_by_it_also_of_values_beyond_the_codes(zero_point: np.generic) -> None:
    proto = joined(zero_point)
    changed = held(proto)
    onnx.checker.check_model(changed, full_check=True)
    assert [node.op_type for node in changed.graph.node].count("Max") == 1
    rows = 20 * onnx_graphs.image_rows(16)
    before, after = (
        ReferenceSession(each.SerializeToString(), threads=1).run({"image": rows})["scores"]
        for each in (proto, changed)
    )
    assert np.array_equal(before, after)


def test_unsigned_codes_and_other_layers_are_left_alone() -> None:
    for proto in (joined(np.uint8(0)), joined(np.uint8(128)), joined(np.int8(0), operator="ConvTranspose")):
        assert held(proto) == proto


def test_of_a_scale_for_each_channel_the_largest_sets_the_bound() -> None:
    proto = joined(np.int8(0))
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    steps = np.linspace(0.01, 0.1, 6, dtype=np.float32)
    constants["joined_scale"].CopyFrom(numpy_helper.from_array(steps, "joined_scale"))
    constants["joined_zero"].CopyFrom(numpy_helper.from_array(np.zeros(6, np.int8), "joined_zero"))
    rows = 20 * onnx_graphs.image_rows(16)
    before, after = (
        ReferenceSession(each.SerializeToString(), threads=1).run({"image": rows})["scores"]
        for each in (proto, held(proto))
    )
    assert held(proto) != proto
    assert np.array_equal(before, after)


def test_a_quantizer_whose_scale_is_computed_is_left_alone() -> None:
    proto = joined(np.int8(0))
    step = next(tensor for tensor in proto.graph.initializer if tensor.name == "joined_scale")
    proto.graph.initializer.remove(step)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("joined_scale", TensorProto.FLOAT, []))
    assert held(proto) == proto


@pytest.mark.parametrize(
    "dtype", ["float64", "int16", "uint16", "uint32", "uint64", "float16", "uint8", "int64"]
)
def test_inputs_of_every_type_may_be_cast_in_front_of_a_quantizer(dtype: str, tmp_path: Path) -> None:
    graph = GraphBuilder(opset=21)
    graph.node("Cast", ["numbers"], "cast", to=TensorProto.FLOAT)
    step = graph.constant("w_scale", np.asarray(0.01, np.float32))
    zero = graph.constant("w_zero", np.asarray(0, np.int8))
    codes = graph.constant("w", graph.random.integers(-127, 128, (32, 32)).astype(np.int8))
    weights = graph.node("DequantizeLinear", [codes, step, zero], "w_pair")
    graph.node("MatMul", [pair(graph, "cast", zero_point=np.int8(0)), weights], "scores")
    numbers = helper.make_tensor_value_info(
        "numbers", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n", 32]
    )
    proto = graph.model([numbers], [floats("scores", "n", 32)])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    rows = {"numbers": np.random.default_rng(4).integers(0, 7, (8, 32)).astype(dtype)}
    right = ReferenceSession(proto.SerializeToString(), threads=1).run(rows)["scores"]
    with OpenVINORuntime().compile(path, threads=1) as engine:
        assert sqnr_db(right, engine.run(rows)["scores"]) > 60
