import numpy as np
import onnx
from onnx import numpy_helper

from engines.formats import sqnr_db
from engines.model.model import from_proto
from engines.phases.preparing import prepare
from engines.quantization.narrowing import narrow_weights, widest_code
from engines.quantization.quantizers import read_quantizers
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.arrived_graphs import like_nncf, like_tf2onnx, rows_for


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(from_proto(proto)).proto


def narrowed(proto: onnx.ModelProto) -> onnx.ModelProto:
    found = narrow_weights(proto, read_quantizers(proto.graph))
    onnx.checker.check_model(found, full_check=True)
    return found


def test_the_widest_code_is_that_of_the_weights() -> None:
    assert widest_code(prepared(like_nncf())) == 127
    assert widest_code(prepared(like_nncf(levels=7))) == 7


def test_codes_fit_7_bits_and_the_answers_stay_near() -> None:
    for proto in (prepared(like_nncf()), prepared(like_tf2onnx())):
        found = narrowed(proto)
        assert widest_code(found) <= 64
        rows = rows_for(proto, 16)
        right, answer = (
            ReferenceSession(model.SerializeToString(), threads=1).run({"image": rows})["scores"]
            for model in (proto, found)
        )
        assert 25 < sqnr_db(right, answer) < 60


def test_narrow_weights_keep_codes_and_scales() -> None:
    proto = prepared(like_nncf(levels=64))
    found = narrowed(proto)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    for node, other in zip(proto.graph.node, found.graph.node, strict=True):
        if node.op_type == "DequantizeLinear" and node.input[0] in before:
            for place in (0, 1):
                np.testing.assert_array_equal(before[node.input[place]], after[other.input[place]])


def test_only_channels_that_need_it_are_rounded_again() -> None:
    proto = prepared(like_nncf(levels=64))
    tensor = next(t for t in proto.graph.initializer if t.name == "w1_codes")
    codes = numpy_helper.to_array(tensor).copy()
    codes[0, 0, 0, 0] = 127
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    after = {t.name: numpy_helper.to_array(t) for t in narrowed(proto).graph.initializer}
    np.testing.assert_array_equal(after["w1_codes_7_bits"][1:], codes[1:])
    assert after["w1_codes_7_bits"][0, 0, 0, 0] == 63
    scales = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}["w1_scale"]
    np.testing.assert_allclose(after["w1_scale_7_bits"][0], scales[0] * 127 / 63, rtol=1e-6)
    np.testing.assert_array_equal(after["w1_scale_7_bits"][1:], scales[1:])
