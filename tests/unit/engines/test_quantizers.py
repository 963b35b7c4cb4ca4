from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import UnsupportedModelError
from engines.model.model import from_proto
from engines.phases.preparing import prepare
from engines.quantization.quantizers import Quantizer, check_form, is_quantized, read_quantizers
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.arrived_graphs import like_nncf, like_pytorch, like_tf2onnx
from tests.unit.engines.onnx_graphs import GraphBuilder, conv_net, floats

ZERO = np.zeros((), np.int8)


def one_pair(
    scale: Any = 0.1,
    zero_point: Any = ZERO,
    *,
    opset: int = 21,
    shape: tuple[int, ...] = (4, 3),
    **attributes: Any,
) -> onnx.ModelProto:
    graph = GraphBuilder(opset=opset)
    names = [graph.constant("scale", np.asarray(scale, np.float32))]
    if zero_point is not None:
        names.append(graph.constant("zero", np.asarray(zero_point)))
    graph.node("QuantizeLinear", ["x", *names], "codes", **attributes)
    graph.node("DequantizeLinear", ["codes", *names], "real", **attributes)
    graph.node("Relu", ["real"], "y")
    return graph.model([floats("x", "n", *shape)], [floats("y", "n", *shape)])


def read(proto: onnx.ModelProto) -> dict[str, Quantizer]:
    return read_quantizers(onnx.shape_inference.infer_shapes(proto).graph)


def test_scale_zero_point_type_and_channels_are_read() -> None:
    found = read(one_pair([0.1, 0.2, 0.3, 0.4], np.array([1, 2, 3, 4], np.uint8), axis=-2))["codes_node"]
    np.testing.assert_array_equal(found.scale, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    assert found.zero_point.tolist() == [1, 2, 3, 4]
    assert (found.data_type, found.axis, found.rank) == (TensorProto.UINT8, 1, 3)
    assert (found.low, found.high) == (0, 255)


@pytest.mark.parametrize(
    ("proto", "symmetric"),
    [
        (one_pair(), True),
        (one_pair(zero_point=np.int8(1)), False),
        (one_pair(zero_point=np.uint8(0)), False),
        (one_pair(zero_point=np.uint8(128)), False),
        # Without a zero point the codes are UINT8.
        (one_pair(zero_point=None), False),
        (one_pair(zero_point=None, opset=13), False),
    ],
)
def test_symmetric_is_signed_with_the_zero_point_0(proto: onnx.ModelProto, symmetric: bool) -> None:
    assert {quantizer.symmetric for quantizer in read(proto).values()} == {symmetric}


def test_a_scale_of_one_element_serves_the_whole_tensor() -> None:
    found = read(one_pair([0.1], np.array([3], np.uint8)))["codes_node"]
    assert (found.axis, found.scale.shape, found.zero_point.shape) == (None, (), ())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_codes_and_numbers_are_those_of_onnx(dtype: type) -> None:
    scale = np.array([0.11, 0.07, 0.2], np.float32)
    zero_point: Any = np.array([3, 0, 100], dtype)
    proto = one_pair(scale, zero_point, axis=2)
    x = np.random.default_rng(0).normal(0, 10, (6, 4, 3)).astype(np.float32)
    x[0] = scale * 2.5  # a tie
    right = ReferenceSession(proto.SerializeToString(), outputs=["codes", "real"], threads=1).run({"x": x})
    found = read(proto)["codes_node"]
    codes = found.codes(x)
    assert codes.dtype == dtype
    np.testing.assert_array_equal(codes, np.asarray(right["codes"], dtype))
    np.testing.assert_array_equal(found.real(codes), np.asarray(right["real"], np.float32))


def test_grids_are_the_same_where_all_of_them_is() -> None:
    first = read(one_pair())["codes_node"]
    assert first.same_grid(read(one_pair())["real_node"])
    for other in (one_pair(0.2), one_pair(zero_point=np.int8(1)), one_pair(zero_point=np.uint8(0))):
        assert not first.same_grid(read(other)["codes_node"])


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (
            one_pair(0.0),
            r"node 'codes_node' \(QuantizeLinear\) has the scale 0; scales are finite and above 0",
        ),
        (one_pair(-1.0), r"has the scale -1"),
        (one_pair(np.nan), r"has the scale nan"),
        (one_pair(np.inf), r"has the scale inf"),
        (one_pair(zero_point=np.int16(0)), r"codes of the type INT16, .*: export it in INT8, UINT8 or FP8"),
        (one_pair(np.ones((2, 2)), np.zeros((2, 2), np.int8)), r"a scale for every block of values"),
        (
            one_pair([1, 1], np.zeros(2, np.int8), axis=1),
            r"2 scales along axis 1 of a tensor .*\['\?', 4, 3\]",
        ),
        (one_pair([1, 1], np.zeros(2, np.int8), axis=3), r"2 scales along axis 3"),
        (one_pair([1, 1, 1, 1], np.zeros(2, np.int8)), r"4 scales and 2 zero points"),
    ],
)
def test_what_cannot_be_meant_or_compiled_is_refused_by_name(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(proto)


def in_float8(data_type: str = "FLOAT8E4M3FN", *, zero_point: int = 0, **attributes: Any) -> onnx.ModelProto:
    proto = one_pair(0.01)
    [zero] = [tensor for tensor in proto.graph.initializer if tensor.name == "zero"]
    element_type = TensorProto.DataType.Value(data_type)
    zero.CopyFrom(helper.make_tensor("zero", element_type, [], bytes([zero_point]), raw=True))
    for name, value in attributes.items():
        proto.graph.node[0].attribute.append(helper.make_attribute(name, value))
    return proto


def test_codes_and_numbers_in_fp8_are_those_of_onnx() -> None:
    proto = in_float8()
    x = np.random.default_rng(0).normal(0, 2, (6, 4, 3)).astype(np.float32)
    x[0] = 100.0  # beyond the largest
    found = read(proto)["codes_node"]
    codes = found.codes(x)
    right = ReferenceSession(proto.SerializeToString(), outputs=["real"], threads=1).run({"x": x})["real"]
    np.testing.assert_array_equal(found.real(codes), np.asarray(right, np.float32))
    assert (found.symmetric, found.is_float8) == (True, True)
    assert (found.bound(found.low), found.bound(found.high)) == pytest.approx((-4.48, 4.48))
    assert not found.same_grid(read(one_pair(0.01))["codes_node"])


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (in_float8(zero_point=0x38), r"'codes_node' .* has the zero point 1 in FP8, where zero points are 0"),
        (in_float8(saturate=0), r"'codes_node' .* makes NaN of values .* export it with saturate = 1"),
    ],
)
def test_fp8_that_hardware_does_not_compute_is_refused(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(proto)


@pytest.mark.parametrize("data_type", ["INT4", "FLOAT8E5M2", "FLOAT8E4M3FNUZ"])
def test_other_types_are_refused_with_the_remedy(data_type: str) -> None:
    proto = one_pair()
    zero = next(tensor for tensor in proto.graph.initializer if tensor.name == "zero")
    zero.CopyFrom(helper.make_tensor("zero", TensorProto.DataType.Value(data_type), [], [0]))
    with pytest.raises(
        UnsupportedModelError, match=rf"type {data_type}, .* or FP8 \(E4M3\) .* upload the FP32 model"
    ):
        read(proto)


def test_a_scale_that_is_computed_is_refused() -> None:
    graph = GraphBuilder(opset=21)
    graph.node("ReduceMax", ["x"], "scale", keepdims=0)
    graph.node("QuantizeLinear", ["x", "scale", graph.constant("zero", np.array(0, np.int8))], "codes")
    graph.node("DequantizeLinear", ["codes", "scale", "zero"], "y")
    with pytest.raises(UnsupportedModelError, match=r"its scale from 'scale', which is computed"):
        read(graph.model([floats("x", "n", 3)], [floats("y", "n", 3)]))


def integer_product() -> onnx.ModelProto:
    graph = GraphBuilder(opset=17)
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "s", "z"], name="dynamic"))
    graph.node("MatMulInteger", ["codes", graph.constant("w", np.ones((3, 3), np.int8)), "z"], "sums")
    graph.node("Cast", ["sums"], "y", to=TensorProto.FLOAT)
    return graph.model([floats("x", "n", 3)], [floats("y", "n", 3)])


@pytest.mark.parametrize("check", [check_form, read_quantizers])
def test_the_operator_oriented_form_is_refused_by_name(check: Callable[[onnx.GraphProto], object]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'dynamic' \(DynamicQuantizeLinear\).*: export it in Q/DQ"
    ):
        check(integer_product().graph)


def test_quantized_models_are_told_from_others() -> None:
    assert is_quantized(integer_product().graph)
    assert is_quantized(one_pair().graph)
    assert not is_quantized(conv_net().graph)


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
@pytest.mark.parametrize("export", [like_pytorch, like_nncf, like_tf2onnx])
def test_preparation_leaves_quantized_models_as_they_are(
    export: Callable[..., onnx.ModelProto], opset: int
) -> None:
    proto = export(opset=opset)
    prepared = prepare(from_proto(proto))
    assert prepared.opset == 21
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    rows = np.random.default_rng(2).normal(size=(8, *(dim.dim_value for dim in dims[1:]))).astype(np.float32)
    right, found = (
        ReferenceSession(model.SerializeToString(), threads=1).run({"image": rows})["scores"]
        for model in (proto, prepared.proto)
    )
    np.testing.assert_array_equal(np.asarray(right, float), np.asarray(found, float))
    kinds = [node.op_type for node in prepared.proto.graph.node]
    assert kinds.count("DequantizeLinear") == sum(n.op_type == "DequantizeLinear" for n in proto.graph.node)
    assert len(read_quantizers(prepared.proto.graph)) == sum("Linear" in kind for kind in kinds)


@pytest.mark.parametrize("opset", [11, 12])
def test_pairs_of_old_opsets_survive_the_upgrade(opset: int) -> None:
    proto = one_pair(opset=opset, zero_point=np.uint8(7))
    prepared = prepare(from_proto(proto))
    x = np.random.default_rng(0).normal(0, 5, (6, 4, 3)).astype(np.float32)
    right, found = (
        ReferenceSession(model.SerializeToString(), threads=1).run({"x": x})["y"]
        for model in (proto, prepared.proto)
    )
    np.testing.assert_array_equal(np.asarray(right, float), np.asarray(found, float))
