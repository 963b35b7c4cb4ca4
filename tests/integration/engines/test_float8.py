"""FP8 from an ONNX file to a proven engine: E4M3 in the artifact, emulated by both runtimes with the same answers."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.building import quantize
from engines.float8 import decode, float8_grid
from engines.formats import sqnr_db
from engines.loading import load_engine
from engines.model.model import from_proto, save_model
from engines.options import BuildOptions, Precision
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.reports.report import Report, Verdict
from engines.runtimes.openvino import OpenVINORuntime
from engines.runtimes.reference import ReferenceRuntime
from engines.workspace import CALIBRATION, QUANTIZED
from tests.unit.engines.onnx_graphs import GraphBuilder, floats, residual_net

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
FP8 = BuildOptions.parse({"precision": "fp8", "batching": {"max_batch_rows": 4}})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A build of a trained classifier on real images."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, quantize(DIGITS / "digits.onnx", [DIGITS / "samples.npz"], folder, FP8, threads=2)


class TestDigits:
    def test_the_engine_keeps_its_contract(self, digits: tuple[Path, Report]) -> None:
        report = digits[1]
        assert (report.verdict, report.reason) == (Verdict.ACCEPTED, None)
        assert (report.requested, report.serving) == (Precision.FP8, Precision.FP8)
        assert report.quantized is not None
        assert report.quantized.value is not None
        assert report.quantized.value > 38
        assert report.quantized.outputs[0].top1_agreement == 1.0

    def test_the_report_claims_no_speed_for_emulation(self, digits: tuple[Path, Report]) -> None:
        report = digits[1]
        assert report.emulated
        assert report.speedup is None
        assert report.latencies[-1].quantized_ms is not None
        summary = report.summary()
        assert (summary["precision"], summary["emulated"], summary["speedup"]) == ("fp8", True, None)

    def test_the_artifact_is_symmetric_e4m3(self, digits: tuple[Path, Report]) -> None:
        proto = onnx.load(digits[0] / QUANTIZED)
        onnx.checker.check_model(proto, full_check=True)
        constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        pairs = [node for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
        assert len(pairs) == 3 * 5
        for node in pairs:
            zero_point = constants[node.input[2]]
            assert zero_point.data_type == onnx.TensorProto.FLOAT8E4M3FN
            assert not any(zero_point.raw_data)

    def test_thresholds_clip_nothing(self, digits: tuple[Path, Report]) -> None:
        table = json.loads((digits[0] / CALIBRATION).read_text())["tensors"]
        assert table
        for entry in table.values():
            assert entry["method"] in ("max", "mse")
            assert entry["absmax"] <= entry["threshold"] < 2 * entry["absmax"]

    def test_layers_without_fp8_kernels_stay_floating(self, digits: tuple[Path, Report]) -> None:
        layers = digits[1].layers
        assert len(layers.quantized) == 5
        assert [layer.operator for layer in layers.skipped] == ["Conv", "Gemm"]
        assert "from 1 to 64 in a group" in layers.skipped[0].reason

    def test_the_version_loads_as_fp8(self, digits: tuple[Path, Report]) -> None:
        loaded = load_engine(digits[0], FP8, threads=1)
        with loaded.engine:
            assert (loaded.precision, loaded.refusal, loaded.batchable) == (Precision.FP8, None, True)


def test_fp8_that_misses_its_contract_is_not_served(tmp_path: Path) -> None:
    options = BuildOptions.parse(
        {"precision": "fp8", "effort": "fast", "contract": {"min": 80}, "batching": {"max_batch_rows": 4}}
    )
    report = quantize(DIGITS / "digits.onnx", [DIGITS / "samples.npz"], tmp_path, options, threads=2)
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert report.summary()["emulated"] is False
    loaded = load_engine(tmp_path, options, threads=1)
    with loaded.engine:
        assert loaded.precision is Precision.FP32
        assert "its contract asks for 80" in str(loaded.refusal)


def test_openvino_rounds_to_the_real_grid(tmp_path: Path) -> None:
    """Numbers of the grid pass unchanged. Others go to the nearest, or to one that is as near up to half precision."""
    graph = GraphBuilder(opset=21)
    graph.node("MatMul", ["x", graph.constant("w", np.eye(32, dtype=np.float32))], "y")
    model = from_proto(graph.model([floats("x", "n", 32)], [floats("y", "n", 32)]))
    placement = place(model, precision=Precision.FP8)
    path = tmp_path / "model.onnx"
    save_model(quantize_model(model, placement, {"x": 448.0}, weight_bits=8, precision=Precision.FP8), path)
    exact = np.nan_to_num(decode(np.arange(256, dtype=np.uint8))).reshape(8, 32)
    between = np.random.default_rng(2).normal(size=(4096, 32)).astype(np.float32) * 100
    with OpenVINORuntime().compile(path, threads=1) as engine:
        assert engine.run({"x": exact})["y"] == pytest.approx(exact, rel=1e-6)
        found = np.asarray(engine.run({"x": between})["y"], np.float32)
    nearest = float8_grid(448.0).snap(between)
    np.testing.assert_allclose(np.abs(found - between), np.abs(nearest - between), rtol=0.02, atol=1e-4)
    assert np.isclose(found, nearest, rtol=1e-5).mean() > 0.99


def test_runtimes_agree_on_a_network(tmp_path: Path) -> None:
    model = from_proto(onnx.shape_inference.infer_shapes(residual_net(channels=32, opset=21)))
    placement = place(model, precision=Precision.FP8)
    thresholds = dict.fromkeys(tensors(placement), 4.0)
    path = tmp_path / "model.onnx"
    save_model(quantize_model(model, placement, thresholds, weight_bits=8, precision=Precision.FP8), path)
    feeds = {"image": np.random.default_rng(5).normal(size=(16, 3, 8, 8)).astype(np.float32)}
    answers = []
    for runtime in (OpenVINORuntime(), ReferenceRuntime()):
        with runtime.compile(path, threads=1) as engine:
            answers.append(engine.run(feeds)["scores"])
    assert sqnr_db(answers[1], answers[0]) > 40
