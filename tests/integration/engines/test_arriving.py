"""Models that arrive quantized, from the upload to the engine that serves."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from engines.building import quantize
from engines.errors import EngineRefusedError, InvalidOptionsError, UnsupportedModelError
from engines.formats import sqnr_db
from engines.loading import load_engine
from engines.model.tensors import Array
from engines.options import BuildOptions, Contract, Effort, Metric, Precision
from engines.proof.proof import Proof
from engines.reports.report import Report, Verdict
from engines.runtimes import openvino
from engines.runtimes.openvino import OpenVINORuntime
from engines.workspace import CALIBRATION, HISTOGRAMS, PREPARED, PROOF, QUANTIZED
from tests.unit.engines.arrived_graphs import (
    like_nncf,
    like_pytorch,
    like_tf2onnx,
    pair,
    rows_for,
    stored,
)
from tests.unit.engines.onnx_graphs import (
    GraphBuilder,
    floats,
    image_rows,
    matmul_net,
    residual_net,
    vector_rows,
)

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
SMALL = BuildOptions.parse({"batching": {"max_batch_rows": 4}})
FP8 = SMALL.model_copy(update={"precision": Precision.FP8})
EXPORTS = (like_pytorch, like_nncf, like_tf2onnx)


def answers(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """Those of onnxruntime without any optimisation: what the file means."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["scores"], dict(feeds))[0])


def build(
    folder: Path, model: onnx.ModelProto, rows: NDArray[np.float32], options: BuildOptions = SMALL
) -> Report:
    path, samples = folder / "model.onnx", folder / "samples.npz"
    onnx.save(model, path)
    np.savez(samples, allow_pickle=False, **{model.graph.input[0].name: rows})
    return quantize(path, [samples], folder / "build", options, threads=1)


def served(folder: Path, rows: NDArray[np.float32], options: BuildOptions = SMALL) -> tuple[Array, Precision]:
    loaded = load_engine(folder / "build", options, threads=1)
    with loaded.engine as engine:
        return engine.run({engine.inputs[0].name: rows})["scores"], loaded.precision


class Rows(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no type information
    """Hands onnxruntime's quantizer its samples."""

    def __init__(self, name: str, rows: NDArray[np.float32]) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: rows[n : n + 8]} for n in range(0, len(rows), 8)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def by_onnxruntime(
    folder: Path, model: onnx.ModelProto, rows: NDArray[np.float32], **options: Any
) -> onnx.ModelProto:
    onnx.save(model, folder / "fp32.onnx")
    reader = Rows(model.graph.input[0].name, rows)
    quantize_static(
        str(folder / "fp32.onnx"), str(folder / "qdq.onnx"), reader, quant_format=QuantFormat.QDQ, **options
    )
    return onnx.load(folder / "qdq.onnx")


SYMMETRIC = {
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
UNSIGNED = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
UNSIGNED_WEIGHTS = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
PRODUCTS_ONLY = {
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "op_types_to_quantize": ["MatMul"],
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [SYMMETRIC, UNSIGNED, UNSIGNED_WEIGHTS], ids=["s8s8", "u8s8", "u8u8"])
def test_what_onnxruntime_quantized_is_served_as_it_is(tmp_path: Path, options: dict[str, Any]) -> None:
    model = by_onnxruntime(tmp_path, residual_net(channels=32), image_rows(64), **options)
    report = build(tmp_path, model, image_rows(48, seed=2))
    assert (report.verdict, report.serving) == (Verdict.ACCEPTED, Precision.INT8), report.reason
    assert report.arrived is not None
    assert str(report.arrived.producer).startswith("onnx.quantize")
    assert report.arrived.layers == 4
    assert bool(report.arrived.asymmetric) == (options is not SYMMETRIC)
    fresh = image_rows(32, seed=3)
    right = answers(model, {"image": fresh})
    found, precision = served(tmp_path, fresh)
    assert precision is Precision.INT8
    assert sqnr_db(right, found) > 28


@pytest.mark.filterwarnings("default")
def test_matrix_products_alone_may_be_quantized(tmp_path: Path) -> None:
    model = by_onnxruntime(tmp_path, matmul_net(hidden=64, classes=16), vector_rows(64), **PRODUCTS_ONLY)
    report = build(tmp_path, model, vector_rows(48, seed=2))
    assert report.serving is Precision.INT8, report.reason
    assert report.arrived is not None
    assert report.arrived.layers == 2


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_of_every_kind_are_served_as_they_are(
    tmp_path: Path, export: Callable[[], onnx.ModelProto]
) -> None:
    model = export()
    report = build(tmp_path, model, rows_for(model, 48))
    assert report.serving is Precision.INT8, report.reason
    assert report.arrived is not None
    assert report.arrived.layers == len(report.layers.quantized) >= 2
    assert report.arrived.floating_layers == 0
    fresh = rows_for(model, 32, seed=4)
    found, _ = served(tmp_path, fresh)
    least_db = 28 if OpenVINORuntime().weight_bits() == 7 else 40
    assert sqnr_db(answers(model, {"image": fresh}), found) > least_db


def test_nothing_is_calibrated_and_the_records_say_why(tmp_path: Path) -> None:
    model = like_pytorch()
    report = build(tmp_path, model, rows_for(model, 40))
    folder = tmp_path / "build"
    assert not (folder / CALIBRATION).exists()
    assert not (folder / HISTOGRAMS).exists()
    assert report.thresholds == {}
    for name, key in (("calibrate", "calibration"), ("quantize", "quantization")):
        summary = json.loads((folder / "phases" / f"{name}.json").read_text())["summary"]
        assert summary[key] == "skipped: the model arrived quantized by pytorch 2.5.1"


def test_all_samples_but_those_kept_for_choices_verify(tmp_path: Path) -> None:
    model = like_nncf()
    evidence = build(tmp_path, model, rows_for(model, 40)).evidence
    assert (evidence.calibrate_rows, evidence.tune_rows, evidence.verify_rows) == (0, 10, 30)
    assert evidence.disjoint
    few = build(tmp_path, model, rows_for(model, 3)).evidence
    assert (few.calibrate_rows, few.tune_rows, few.verify_rows) == (0, 0, 3)
    assert few.weak == "the proof has 3 rows, fewer than 32; upload more samples"


def test_the_proof_holds_the_answers_of_the_quantized_upload(tmp_path: Path) -> None:
    model = like_nncf()
    build(tmp_path, model, rows_for(model, 40))
    proof = Proof.load(tmp_path / "build" / PROOF)
    assert proof.arrived
    assert set(proof.hashes) == {PREPARED, QUANTIZED}
    for batch in proof.batches:
        right = answers(model, batch.inputs)
        assert sqnr_db(right, batch.outputs["scores"]) > 100


def test_the_distance_of_the_graph_without_rounding_is_reported(tmp_path: Path) -> None:
    model = like_nncf(levels=3)
    report = build(tmp_path, model, rows_for(model, 40))
    assert report.serving is Precision.INT8
    assert report.arrived is not None
    (output,) = report.arrived.without_pairs
    assert output.name == "scores"
    assert output.sqnr_db is not None
    assert 15 < output.sqnr_db < 60
    kinds = {node.op_type for node in onnx.load(tmp_path / "build" / PREPARED).graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_the_artifact_answers_as_the_upload_does_and_stores_codes(tmp_path: Path) -> None:
    model = like_pytorch()
    report = build(tmp_path, model, rows_for(model, 40))
    artifact = onnx.load(tmp_path / "build" / QUANTIZED)
    feeds = {"image": rows_for(model, 32, seed=5)}
    if OpenVINORuntime().weight_bits() == 8:
        assert sqnr_db(answers(model, feeds), answers(artifact, feeds)) > 100
    assert report.sizes.quantized_bytes is not None
    assert report.sizes.quantized_bytes < 0.5 * report.sizes.uploaded_bytes


def test_a_finer_grid_is_not_put_under_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    read = openvino._read

    def reading(content: bytes, weights: Path | None = None) -> Any:
        seen.append(content)
        return read(content, weights)

    monkeypatch.setattr(openvino, "_read", reading)
    model = like_nncf(levels=7)
    build(tmp_path, model, rows_for(model, 40))
    quantized = (tmp_path / "build" / QUANTIZED).read_bytes()
    assert quantized in seen


def coarse(scale: float) -> onnx.ModelProto:
    """Three levels of activations: what rounds is the model, and without rounding it is another one."""
    graph = GraphBuilder(opset=17)
    image = pair(graph, "image", scale)
    graph.node("Conv", [image, stored(graph, "w1", (32, 3, 3, 3))], "conv1")
    graph.node("Relu", ["conv1"], "relu1")
    relu = pair(graph, "relu1", scale)
    graph.node("Conv", [relu, stored(graph, "w2", (32, 32, 3, 3))], "conv2")
    graph.node("GlobalAveragePool", ["conv2"], "pooled")
    graph.node("Flatten", ["pooled"], "scores")
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", 32)])


def test_where_the_engine_misses_the_graph_without_rounding_serves_if_it_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    model = like_nncf()
    report = build(tmp_path, model, rows_for(model, 40))
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert str(report.reason).startswith("the 8-bit engine misses its contract")
    assert str(report.reason).endswith("so the graph without its rounding serves.")
    found, precision = served(tmp_path, rows_for(model, 32))
    assert precision is Precision.FP32
    assert sqnr_db(answers(model, {"image": rows_for(model, 32)}), found) > 20


def test_where_that_misses_too_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = coarse(1.0)
    assert build(tmp_path, model, rows_for(model, 40)).serving is Precision.INT8
    spoil(monkeypatch)
    with pytest.raises(EngineRefusedError, match=r"8-bit engine .*, and the engine without rounding misses"):
        build(tmp_path, model, rows_for(model, 40))


def test_a_machine_on_which_no_engine_keeps_the_contract_answers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = coarse(1.0)
    build(tmp_path, model, rows_for(model, 40))
    spoil(monkeypatch)
    with pytest.raises(EngineRefusedError, match="lower the contract, or upload the FP32 model"):
        load_engine(tmp_path / "build", SMALL, threads=1)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the runtime get 8-bit models wrong, as one does whose sums saturate."""
    content = openvino.as_compiled

    def spoiled(path: Path) -> bytes:
        proto = onnx.load_model_from_string(content(path))
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
                codes = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.minimum(codes, 2), tensor.name))
        spoiled: bytes = proto.SerializeToString()
        return spoiled

    monkeypatch.setattr(openvino, "as_compiled", spoiled)


def test_fp32_serves_the_quantized_graph_as_it_is(tmp_path: Path) -> None:
    options = BuildOptions.parse({"precision": "fp32", "batching": {"max_batch_rows": 4}})
    model = coarse(1.0)
    report = build(tmp_path, model, rows_for(model, 40), options)
    assert (report.verdict, report.serving, report.quantized) == (Verdict.ACCEPTED, Precision.FP32, None)
    assert report.arrived is not None
    assert report.arrived.without_pairs == ()
    assert not (tmp_path / "build" / QUANTIZED).exists()
    kinds = {node.op_type for node in onnx.load(tmp_path / "build" / PREPARED).graph.node}
    assert "QuantizeLinear" in kinds
    found, _ = served(tmp_path, rows_for(model, 32), options)
    assert sqnr_db(answers(model, {"image": rows_for(model, 32)}), found) > 25


@pytest.mark.filterwarnings("default")
def test_the_operator_oriented_form_is_refused_by_name_and_served_as_it_is_on_demand(tmp_path: Path) -> None:
    onnx.save(matmul_net(hidden=64, classes=16), tmp_path / "fp32.onnx")
    quantize_dynamic(str(tmp_path / "fp32.onnx"), str(tmp_path / "dynamic.onnx"))
    model = onnx.load(tmp_path / "dynamic.onnx")
    with pytest.raises(
        UnsupportedModelError, match=r"DynamicQuantizeLinear.* computes on 8-bit codes itself"
    ):
        build(tmp_path, model, vector_rows(40))
    fp32 = BuildOptions.parse({"precision": "fp32", "batching": {"max_batch_rows": 4}})
    report = build(tmp_path, model, vector_rows(40), fp32)
    assert report.serving is Precision.FP32


def test_weights_are_taken_to_7_bits_where_the_processor_needs_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVINORuntime, "weight_bits", lambda _self: 7)
    model = like_nncf()
    report = build(tmp_path, model, rows_for(model, 40))
    assert report.serving is Precision.INT8, report.reason
    summary = json.loads((tmp_path / "build" / "phases" / "quantize.json").read_text())["summary"]
    assert set(summary["tune_sqnr_db"]) == {"weights as they arrived", "weights rounded to 7 bits"}
    narrow = like_nncf(levels=63)
    build(tmp_path, narrow, rows_for(narrow, 40))
    summary = json.loads((tmp_path / "build" / "phases" / "quantize.json").read_text())["summary"]
    assert summary["widest_weight_code"] == 63
    assert "tune_sqnr_db" not in summary


def test_a_miss_for_want_of_vnni_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = like_nncf()
    build(tmp_path, model, rows_for(model, 40))
    spoil(monkeypatch)
    monkeypatch.setattr(OpenVINORuntime, "weight_bits", lambda _self: 7)
    loaded = load_engine(tmp_path / "build", SMALL, threads=1)
    loaded.engine.close()
    if OpenVINORuntime().hardware_key().endswith("w8"):
        assert "its weights use 8 bits, with codes up to 127, and this processor needs 7" in str(
            loaded.refusal
        )


def test_contracts_may_be_stricter(tmp_path: Path) -> None:
    model = like_nncf()
    options = SMALL.model_copy(update={"contract": Contract(metric=Metric.SQNR_DB, min=190)})
    with pytest.raises(EngineRefusedError, match="its contract asks for 190"):
        build(tmp_path, model, rows_for(model, 40), options)


def test_another_precision_than_the_one_it_arrived_in_is_refused(tmp_path: Path) -> None:
    model = like_pytorch()
    with pytest.raises(
        InvalidOptionsError, match=r"arrived quantized by pytorch 2\.5\.1, in INT8, and cannot be"
    ):
        build(tmp_path, model, rows_for(model, 40), FP8)


@pytest.fixture(scope="module")
def in_float8(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Report]:
    """What octet made of a model in FP8, and the report of uploading that."""
    folder = tmp_path_factory.mktemp("float8")
    made = FP8.model_copy(update={"effort": Effort.FAST})
    build(folder, residual_net(channels=32), image_rows(64), made)
    model = onnx.load(folder / "build" / QUANTIZED)
    return model, build(folder, model, image_rows(64, seed=3), FP8)


class TestFloat8:
    def test_it_is_served_as_it_is_and_said_to_be_emulated(
        self, in_float8: tuple[onnx.ModelProto, Report]
    ) -> None:
        report = in_float8[1]
        assert (report.verdict, report.serving, report.reason) == (Verdict.ACCEPTED, Precision.FP8, None)
        assert (report.emulated, report.speedup, report.thresholds) == (True, None, {})
        assert report.quantized is not None
        assert report.quantized.value is not None
        assert report.quantized.value > 30
        assert report.arrived is not None
        assert (report.arrived.layers, report.arrived.asymmetric) == (2, 0)
        [without_rounding] = report.arrived.without_pairs
        assert without_rounding.sqnr_db is not None
        assert 20 < without_rounding.sqnr_db < report.quantized.value

    def test_the_remedy_for_slowness_fits_an_upload_without_fp32(
        self, in_float8: tuple[onnx.ModelProto, Report]
    ) -> None:
        for warning in in_float8[1].warnings:
            assert warning.endswith("that computes in its type, or upload the FP32 model.")

    def test_int8_is_not_made_of_it(self, in_float8: tuple[onnx.ModelProto, Report], tmp_path: Path) -> None:
        with pytest.raises(
            InvalidOptionsError, match=r"in FP8, .* in int8: ask for precision fp8, which keeps"
        ):
            build(tmp_path, in_float8[0], image_rows(40))

    def test_two_types_in_one_model_are_refused_by_name(
        self, in_float8: tuple[onnx.ModelProto, Report], tmp_path: Path
    ) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(in_float8[0])
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        readers = [node for node in model.graph.node if first.output[0] in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
        for node in (first, *readers):
            node.input[2] = "zero"
        with pytest.raises(UnsupportedModelError, match=rf"of FP8 \('.*'\) and of INT8 \('{first.name}'\)"):
            build(tmp_path, model, image_rows(40), FP8)


def test_a_runtime_that_takes_symmetric_quantizers_only_refuses_others_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVINORuntime, "takes_asymmetric", False)
    model = like_pytorch()
    with pytest.raises(
        UnsupportedModelError, match=r"openvino takes symmetric INT8 only, and 6 nodes .*'image_codes_"
    ):
        build(tmp_path, model, rows_for(model, 40))
    model = like_nncf()
    assert build(tmp_path, model, rows_for(model, 40)).serving is Precision.INT8
