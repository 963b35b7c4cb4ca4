"""What TensorRT is given to compile."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from engines.calibration.magnitudes import with_magnitudes
from engines.errors import CompileError
from engines.model.model import Model, save_model
from engines.runtimes.tensorrt import preparation
from tests.unit.engines import onnx_graphs
from tests.unit.engines.test_half_precision import computes_in, magnitudes, quantized

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def eight_bits(*, noted: bool) -> Model:
    proto = onnx_graphs.residual_net(opset=21, channels=32)
    model = quantized(proto)
    return with_magnitudes(model, magnitudes(proto, {"image": onnx_graphs.image_rows(4)})) if noted else model


def prepared(model: Model, folder: Path) -> tuple[preparation.PreparedModel, onnx.ModelProto]:
    save_model(model, folder / "model.onnx")
    found = preparation.prepare(folder / "model.onnx")
    return found, onnx.ModelProto.FromString(found.content)


def test_a_model_that_carries_its_magnitudes_is_compiled_with_its_rest_in_16_bits(tmp_path: Path) -> None:
    model = eight_bits(noted=True)
    found, proto = prepared(model, tmp_path)
    assert set(computes_in(proto, "Conv")) == {HALF}
    assert [spec.describe() for spec in found.inputs] == [spec.describe() for spec in model.inputs]
    assert [spec.describe() for spec in found.outputs] == [spec.describe() for spec in model.outputs]
    named = {node.name for node in proto.graph.node if node.op_type.endswith("quantizeLinear")}
    assert found.quantizers >= named > set(), "the inspector's layers are told by these names"


def test_one_that_does_not_is_compiled_as_it_is(tmp_path: Path) -> None:
    assert set(computes_in(prepared(eight_bits(noted=False), tmp_path)[1], "Conv")) == {SINGLE}


def test_one_that_cannot_be_written_so_is_compiled_as_it_is_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(proto: onnx.ModelProto, magnitudes: dict[str, float]) -> onnx.ModelProto:
        raise CompileError("it cannot be written in 16-bit floats.")

    monkeypatch.setattr(preparation, "halve_rest", refuse)
    assert set(computes_in(prepared(eight_bits(noted=True), tmp_path)[1], "Conv")) == {SINGLE}
    assert "it cannot be written in 16-bit floats" in caplog.text
