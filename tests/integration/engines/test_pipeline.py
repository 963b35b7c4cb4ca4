"""From an ONNX file and samples to a proven engine. Run a second time without VNNI by `test_without_vnni`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.building import quantize
from engines.errors import (
    CalibrationError,
    EngineError,
    EngineRefusedError,
    InvalidArtifactError,
    InvalidModelError,
    InvalidOptionsError,
    InvalidSamplesError,
    UnsupportedModelError,
)
from engines.fidelity.accuracy import BEST_DB
from engines.loading import load_engine
from engines.model.model import load_model
from engines.model.tensors import Array
from engines.options import BuildOptions, CalibrationMethod, Contract, Effort, Metric, Precision
from engines.pipeline import PHASES
from engines.proof.proof import Proof
from engines.proof.sealed import sha256
from engines.reports.report import Report, Verdict
from engines.runtimes.openvino import OpenVINORuntime
from engines.runtimes.reference import ReferenceSession
from engines.samples.sample_set import SampleSet
from engines.search.choices import Variant
from engines.workspace import (
    CALIBRATION,
    COMPILED,
    HISTOGRAMS,
    PREPARED,
    PROOF,
    QUANTIZED,
    REPORT,
    SAMPLES,
    UPLOADED_MODEL,
    VALIDATED,
    Workspace,
)
from tests.unit.engines.onnx_graphs import (
    GraphBuilder,
    conv_net,
    depthwise_net,
    floats,
    image_rows,
    mlp,
    residual_net,
    vector_rows,
)
from tests.unit.engines.transformer_graphs import feed_forward, token_rows

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
STANDARD = BuildOptions.parse({"batching": {"max_batch_rows": 4}})
SMALL = STANDARD.model_copy(update={"effort": Effort.FAST})
"""For what does not depend on how much is tried."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files to be uploaded."""

    model: Path
    samples: Path

    @classmethod
    def of(cls, folder: Path, model: onnx.ModelProto | bytes, **arrays: Array) -> "Inputs":
        path, samples = folder / "model.onnx", folder / "samples.npz"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        np.savez(samples, allow_pickle=False, **arrays)
        return cls(model=path, samples=samples)


def build(
    folder: Path, model: onnx.ModelProto | bytes, options: BuildOptions = SMALL, **arrays: Array
) -> Report:
    given = Inputs.of(folder, model, **arrays)
    return quantize(given.model, [given.samples], folder / "build", options, threads=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A build of a trained classifier on real images."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, quantize(DIGITS / "digits.onnx", [DIGITS / "samples.npz"], folder, STANDARD, threads=2)


class TestDigits:
    def test_every_clause_of_the_default_contract_is_reported(self, digits: tuple[Path, Report]) -> None:
        _, report = digits
        assert report.quantized is not None
        measures = [clause.measure for clause in report.quantized.clauses]
        assert measures == ["sqnr_db", "row_sqnr_p5_db", "variation_sqnr_db", "top1_weighted"]
        assert all(clause.holds for clause in report.quantized.clauses)
        assert report.contract.metric is None

    def test_the_8_bit_engine_keeps_its_contract(self, digits: tuple[Path, Report]) -> None:
        report = digits[1]
        assert (report.verdict, report.reason, report.serving) == (Verdict.ACCEPTED, None, Precision.INT8)
        assert report.quantized is not None
        assert report.quantized.value is not None
        assert report.quantized.value > 28
        assert report.quantized.outputs[0].top1_agreement == 1.0
        assert report.fp32.value is not None
        assert report.fp32.value > 100

    def test_the_report_tells_the_whole_story(self, digits: tuple[Path, Report]) -> None:
        folder, report = digits
        runtime = OpenVINORuntime()
        assert Report.load(folder / REPORT) == report
        assert report.evidence.model_dump() == {
            "calibrate_rows": 128,
            "tune_rows": 64,
            "verify_rows": 64,
            "proof_rows": 64,
            "disjoint": True,
            "weak": None,
        }
        assert report.batching.batchable
        assert report.sizes.quantized_bytes is not None
        assert report.sizes.quantized_bytes < 0.3 * report.sizes.uploaded_bytes
        assert len(report.layers.quantized) == len(report.thresholds) == 6
        assert [layer.operator for layer in report.layers.skipped] == ["Gemm"]
        assert all(0 < entry.threshold <= entry.absmax for entry in report.thresholds.values())
        assert [latency.rows for latency in report.latencies] == [1, 4]
        assert report.speedup is not None
        assert report.speedup > 0
        assert (report.hardware.key, report.hardware.weight_bits) == (
            runtime.hardware_key(),
            runtime.weight_bits(),
        )
        assert set(report.phases) == {phase.name for phase in PHASES}
        assert report.versions["openvino"]

    def test_its_summary_is_flat_json(self, digits: tuple[Path, Report]) -> None:
        summary = json.loads(json.dumps(digits[1].summary(), allow_nan=False))
        assert summary["precision"] == "int8"
        assert summary["sqnr_db"] > 28
        assert summary["speedup"] > 0

    def test_nothing_is_chosen_on_the_verify_rows(self, digits: tuple[Path, Report], tmp_path: Path) -> None:
        images = np.load(DIGITS / "samples.npz")["image"]
        verify = SampleSet.open(digits[0] / SAMPLES).split().verify.numbers
        images[verify] = np.random.default_rng(0).normal(0, 50, images[verify].shape)
        np.savez(tmp_path / "samples.npz", allow_pickle=False, image=images)
        model = DIGITS / "digits.onnx"
        poisoned = quantize(model, [tmp_path / "samples.npz"], tmp_path / "build", STANDARD, threads=2)
        assert poisoned.verdict is Verdict.REFUSED
        for name in (PREPARED, CALIBRATION, HISTOGRAMS, QUANTIZED):
            assert sha256(tmp_path / "build" / name) == sha256(digits[0] / name), name

    def test_all_files_of_the_build_are_there(self, digits: tuple[Path, Report]) -> None:
        for name in (VALIDATED, PREPARED, CALIBRATION, HISTOGRAMS, QUANTIZED, COMPILED, PROOF, REPORT):
            assert (digits[0] / name).is_file(), name

    def test_the_artifact_is_symmetric_int8_with_weights_as_wide_as_the_machine_takes(
        self, digits: tuple[Path, Report]
    ) -> None:
        graph = onnx.load(digits[0] / QUANTIZED).graph
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        codes = [array for array in constants.values() if array.dtype == np.int8 and array.ndim > 1]
        widest = max(int(np.abs(array.astype(int)).max()) for array in codes)
        assert widest == {8: 127, 7: 63}[OpenVINORuntime().weight_bits()]
        pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
        assert pairs
        assert all(not constants[node.input[2]].any() for node in pairs)

    def test_calibration_is_kept_with_threshold_extreme_and_method(self, digits: tuple[Path, Report]) -> None:
        table = json.loads((digits[0] / CALIBRATION).read_text())
        assert table["rows"] == 128
        for entry in table["tensors"].values():
            assert set(entry) == {"threshold", "absmax", "method"}
            assert entry["method"] in ("max", "mse"), "auto names the method that it chose for the tensor"

    def test_the_loaded_engine_answers_like_fp32(self, digits: tuple[Path, Report], tmp_path: Path) -> None:
        images = np.load(DIGITS / "samples.npz")["image"][:50]
        expected = ReferenceSession(DIGITS / "digits.onnx", threads=1).run({"image": images})["scores"]
        loaded = load_engine(digits[0], SMALL, threads=2, cache=tmp_path)
        with loaded.engine as engine:
            scores = engine.run({"image": images})["scores"]
        assert (loaded.precision, loaded.refusal, loaded.batchable) == (Precision.INT8, None, True)
        assert loaded.verification.holds
        agreement = np.mean(scores.argmax(axis=1) == expected.argmax(axis=1))
        assert agreement == 1.0
        assert list(tmp_path.rglob("*.engine"))

    def test_the_proof_rests_on_the_uploaded_model_and_the_verify_rows(
        self, digits: tuple[Path, Report]
    ) -> None:
        folder = digits[0]
        proof = Proof.load(folder / PROOF)
        assert proof.hashes == {name: sha256(folder / name) for name in (PREPARED, QUANTIZED)}
        session = ReferenceSession(folder / UPLOADED_MODEL, threads=1)
        for batch in proof.batches:
            np.testing.assert_allclose(
                np.asarray(session.run(batch.inputs)["scores"], float),
                np.asarray(batch.outputs["scores"], float),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize(
    ("net", "method"),
    [(conv_net, CalibrationMethod.ENTROPY), (depthwise_net, CalibrationMethod.ENTROPY)]
    + [(residual_net, method) for method in CalibrationMethod],
)
def test_convolutional_nets_keep_the_default_contract(
    tmp_path: Path, net: Callable[..., onnx.ModelProto], method: CalibrationMethod
) -> None:
    effort = Effort.STANDARD if method is CalibrationMethod.AUTO else Effort.FAST
    options = STANDARD.model_copy(update={"calibration": method, "effort": effort})
    report = build(tmp_path, net(channels=32), options, image=image_rows(64))
    assert report.verdict is Verdict.ACCEPTED, report.reason
    assert report.quantized is not None
    assert report.quantized.holds
    assert report.batching.batchable


def test_multilayer_perceptrons_keep_the_default_contract(tmp_path: Path) -> None:
    report = build(tmp_path, mlp(hidden=64, classes=16), STANDARD, vector=vector_rows(128))
    assert report.verdict is Verdict.ACCEPTED, report.reason


def test_labels_put_both_accuracies_into_the_report_and_change_nothing_else(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits.npz") as stored:
        images, labels = stored["images"][1500:].astype(np.float32), stored["labels"][1500:].astype(np.int64)
    np.savez(tmp_path / "samples.npz", allow_pickle=False, image=images)
    np.save(tmp_path / "labels.npy", labels)
    arguments = (DIGITS / "digits.onnx", [tmp_path / "samples.npz"], tmp_path / "build", SMALL)
    labelled = quantize(*arguments, labels=tmp_path / "labels.npy")
    task = labelled.task
    assert task is not None
    assert (task.output, task.rows) == ("scores", labelled.evidence.proof_rows)
    assert task.quantized_top1 is not None
    assert min(task.fp32_top1, task.quantized_top1) > 0.95
    plain = quantize(*arguments)
    assert plain.task is None
    assert plain.quantized == labelled.quantized
    np.save(tmp_path / "labels.npy", labels[:-1])
    with pytest.raises(InvalidSamplesError, match="the labels have the shape"):
        quantize(*arguments, labels=tmp_path / "labels.npy")


def test_phases_go_on_from_files_alone_and_write_only_what_they_declare(tmp_path: Path) -> None:
    given = Inputs.of(tmp_path, conv_net(), image=image_rows(40))
    folder = tmp_path / "build"
    workspace = Workspace(folder)
    workspace.path(UPLOADED_MODEL).write_bytes(given.model.read_bytes())
    workspace.path("upload/samples-0.npz").write_bytes(given.samples.read_bytes())
    before = set(workspace.list(""))
    for phase in PHASES:
        told: list[float] = []
        summary = phase.run(Workspace(folder), SMALL, told.append)
        json.dumps(summary, allow_nan=False)
        after = set(workspace.list(""))
        undeclared = {
            name
            for name in after - before
            if not any(name == out or (out.endswith("/") and name.startswith(out)) for out in phase.outputs)
        }
        assert undeclared == set(), phase.name
        assert told, phase.name
        assert told == sorted(told), phase.name
        assert told[-1] == 1.0, phase.name
        assert min(told) >= 0, phase.name
        before = after
    assert Report.load(workspace.path(REPORT)).verdict is Verdict.ACCEPTED


def test_a_phase_that_is_run_again_writes_the_same_bytes(tmp_path: Path) -> None:
    build(tmp_path, conv_net(), STANDARD, image=image_rows(40))
    workspace = Workspace(tmp_path / "build")
    names = (PREPARED, CALIBRATION, HISTOGRAMS, QUANTIZED, PROOF)
    before = {name: workspace.path(name).read_bytes() for name in names}
    for phase in PHASES:
        phase.run(workspace, STANDARD, lambda _done: None)
    for name in names:
        assert workspace.path(name).read_bytes() == before[name], name


@pytest.mark.parametrize("evens", [True, False])
def test_however_the_samples_are_cut_into_files_the_bytes_are_the_same(
    tmp_path: Path, *, evens: bool
) -> None:
    """One net whose channels are evened out before it is calibrated, one whose weights are fitted."""
    if evens:
        proto, name, rows = feed_forward(outliers=[11]).proto, "tokens", token_rows(80)
    else:
        proto, name, rows = depthwise_net(), "image", image_rows(80)
    model = tmp_path / "model.onnx"
    model.write_bytes(proto.SerializeToString())
    found = []
    for threads, cuts in ((2, []), (1, [7, 8, 41])):
        paths = [tmp_path / f"{threads}-{number}.npz" for number in range(len(cuts) + 1)]
        for path, part in zip(paths, np.split(rows, cuts), strict=True):
            np.savez(path, allow_pickle=False, **{name: part})
        report = quantize(model, paths, tmp_path / "build", STANDARD, threads=threads)
        assert report.choices is not None
        chosen = report.choices.candidates[report.choices.chosen]
        assert (chosen.variant is Variant.EVENED) == evens
        assert evens or chosen.fitted
        workspace = Workspace(tmp_path / "build")
        names = (PREPARED, CALIBRATION, HISTOGRAMS, QUANTIZED)
        found.append({name: workspace.path(name).read_bytes() for name in names})
    assert found[0] == found[1]


def test_progress_names_every_phase_in_order(tmp_path: Path) -> None:
    given = Inputs.of(tmp_path, conv_net(), image=image_rows(8))
    told: list[tuple[str, float]] = []
    quantize(
        given.model, [given.samples], tmp_path / "build", SMALL, progress=lambda *args: told.append(args)
    )
    assert list(dict.fromkeys(name for name, _ in told)) == [phase.name for phase in PHASES]


def test_fp32_is_compiled_and_proven_as_it_is(tmp_path: Path) -> None:
    options = BuildOptions.parse({"precision": "fp32", "batching": {"max_batch_rows": 4}})
    report = build(tmp_path, conv_net(), options, image=image_rows(40))
    folder = tmp_path / "build"
    assert (report.verdict, report.serving, report.quantized) == (Verdict.ACCEPTED, Precision.FP32, None)
    assert report.fp32.holds
    assert not any((folder / name).exists() for name in (CALIBRATION, HISTOGRAMS, QUANTIZED))
    assert [latency.quantized_ms for latency in report.latencies] == [None, None]
    for name in ("calibrate", "quantize"):
        record = json.loads((folder / "phases" / f"{name}.json").read_text())
        assert "skipped: the build asks for fp32" in record["summary"].values()
    loaded = load_engine(folder, options, threads=1, cache=None)
    loaded.engine.close()
    assert (loaded.precision, loaded.refusal) == (Precision.FP32, None)


def test_an_8_bit_engine_that_misses_its_contract_is_refused_and_fp32_serves(tmp_path: Path) -> None:
    options = SMALL.model_copy(update={"contract": Contract(min=90)})
    report = build(tmp_path, conv_net(), options, image=image_rows(40))
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert str(report.reason).startswith("the 8-bit engine misses its contract")
    assert str(report.reason).endswith("and its contract asks for 90, so FP32 serves.")
    assert report.quantized is not None
    assert not report.quantized.holds
    assert report.fp32.holds
    assert report.summary()["sqnr_db"] == report.fp32.outputs[0].sqnr_db
    loaded = load_engine(tmp_path / "build", options, threads=1, cache=None)
    with loaded.engine as engine:
        scores = engine.run({"image": image_rows(3)})["scores"]
    assert loaded.precision is Precision.FP32
    assert loaded.refusal == report.reason
    expected = ReferenceSession(tmp_path / "model.onnx", threads=1).run({"image": image_rows(3)})["scores"]
    np.testing.assert_allclose(np.asarray(scores, float), np.asarray(expected, float), rtol=1e-4, atol=1e-5)


def test_a_model_without_layers_for_8_bits_is_served_in_fp32_and_says_so(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Sigmoid", ["vector"], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "n", 12)])
    report = build(tmp_path, model, vector=vector_rows(20))
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert report.reason == "no layer of the model can run in 8 bits, so FP32 serves."
    assert not (tmp_path / "build" / QUANTIZED).exists()
    loaded = load_engine(tmp_path / "build", SMALL, threads=1, cache=None)
    loaded.engine.close()
    assert loaded.refusal == report.reason


def test_an_8_bit_model_that_cannot_be_compiled_leaves_fp32_to_serve(tmp_path: Path) -> None:
    build(tmp_path, conv_net(), image=image_rows(40))
    workspace = Workspace(tmp_path / "build")
    workspace.path(QUANTIZED).write_bytes(b"no model")
    for phase in PHASES[-2:]:
        phase.run(workspace, SMALL, lambda _done: None)
    report = Report.load(workspace.path(REPORT))
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert "not an ONNX file" in str(report.reason)
    assert json.loads(workspace.path(COMPILED).read_text())["problem"]
    loaded = load_engine(workspace.root, SMALL, threads=1, cache=None)
    loaded.engine.close()
    assert "not an ONNX file" in str(loaded.refusal)


def test_few_samples_are_called_weak_evidence(tmp_path: Path) -> None:
    report = build(tmp_path, conv_net(), image=image_rows(3))
    assert not report.evidence.disjoint
    assert "too few to keep some aside" in str(report.evidence.weak)
    assert "the proof has 3 rows, fewer than 32" in str(report.evidence.weak)


def test_a_model_whose_rows_influence_each_other_is_served_without_batching(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 32)], "hidden")
    graph.node("Relu", ["hidden"], "relu")
    graph.node("Gemm", ["relu", graph.weight("v", 32, 16)], "logits")
    graph.node("Softmax", ["logits"], "scores", axis=0)
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "n", 16)])
    options = SMALL.model_copy(update={"contract": Contract(min=5)})
    report = build(tmp_path, model, options, vector=vector_rows(64))
    assert not report.batching.batchable
    assert "changes when its batch" in str(report.batching.reason)
    loaded = load_engine(tmp_path / "build", options, threads=1, cache=None)
    loaded.engine.close()
    assert not loaded.batchable


def halved_and_joined() -> onnx.ModelProto:
    """A model of a batch of 4, which it cuts in two on its way: no other batch will do."""
    graph = GraphBuilder()
    sizes = graph.constant("sizes", np.array([2, 2]))
    graph.nodes.append(onnx.helper.make_node("Split", ["vector", sizes], ["first", "second"], axis=0))
    graph.node("Concat", ["first", "second"], "joined", axis=0)
    graph.node("MatMul", ["joined", graph.weight("w", 24, 16)], "scores")
    return graph.model([floats("vector", 4, 24)], [floats("scores", 4, 16)])


def test_a_fixed_batch_that_cannot_be_freed_is_kept_all_the_way(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(42, 24)).astype(np.float32)
    report = build(tmp_path, halved_and_joined(), vector=vectors)
    assert report.verdict is Verdict.ACCEPTED, report.reason
    assert report.batching.stays_fixed is not None
    assert [latency.rows for latency in report.latencies] == [4]
    loaded = load_engine(tmp_path / "build", SMALL, threads=1, cache=None)
    with loaded.engine as engine:
        assert engine.inputs[0].fixed_rows == 4
        assert engine.run({"vector": vectors[:4]})["scores"].shape == (4, 16)
    assert loaded.batchable


def broken_inside(rows: int) -> onnx.ModelProto:
    """A model whose batch is free at its inputs and fixed to `rows` inside."""
    graph = GraphBuilder()
    shape = graph.constant("shape", np.array([rows, 12]))
    graph.node("Reshape", ["vector", shape], "folded")
    graph.node("Gemm", ["folded", graph.weight("w", 12, 16)], "scores")
    return graph.model([floats("vector", "n", 12)], [floats("scores", "m", 16)])


def needs_type() -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Det", ["matrix"], "scores")
    number = onnx.helper.make_tensor_value_info("matrix", onnx.TensorProto.DOUBLE, ["n", 2, 2])
    result = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.DOUBLE, ["n"])
    return graph.model([number], [result])


def gives_nan() -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 16)], "logits")
    graph.node("Log", ["logits"], "scores")
    return graph.model([floats("vector", "n", 12)], [floats("scores", "n", 16)])


TOP1 = SMALL.model_copy(update={"contract": Contract(metric=Metric.TOP1_AGREEMENT, min=0.9)})


def maps_only() -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 16, 3, 3, 3)], "maps")
    return graph.model([floats("image", "n", 3, 8, 8)], [floats("maps", "n", 16, 6, 6)])


@pytest.mark.parametrize(
    ("model", "arrays", "options", "kind", "words"),
    [
        (b"", {"image": image_rows(4)}, SMALL, InvalidModelError, ["empty", "0 bytes"]),
        (b"no model at all", {"image": image_rows(4)}, SMALL, InvalidModelError, ["ONNX"]),
        (conv_net(), {"imago": image_rows(4)}, SMALL, InvalidSamplesError, ["imago", "image"]),
        (
            maps_only(),
            {"image": image_rows(8)},
            TOP1,
            InvalidOptionsError,
            ["top1_agreement", "outputs are maps"],
        ),
        (broken_inside(1), {"vector": vector_rows(8)}, SMALL, UnsupportedModelError, ["not with 2", "free"]),
        (broken_inside(3), {"vector": vector_rows(8)}, SMALL, CalibrationError, ["first sample", "folded"]),
        (gives_nan(), {"vector": vector_rows(8)}, SMALL, CalibrationError, ["NaN", "scores"]),
    ],
)
def test_bad_input_stops_the_build_in_a_sentence(
    tmp_path: Path,
    model: onnx.ModelProto | bytes,
    arrays: dict[str, Array],
    options: BuildOptions,
    kind: type[EngineError],
    words: Sequence[str],
) -> None:
    with pytest.raises(kind) as caught:
        build(tmp_path, model, options, **arrays)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert message.endswith(".")
    assert ".." not in message.replace("...", "")


def test_a_type_that_onnxruntime_cannot_compute_is_unsupported_not_internal(tmp_path: Path) -> None:
    model = needs_type()
    with pytest.raises(UnsupportedModelError, match="Det"):
        build(tmp_path, model, matrix=np.ones((4, 2, 2)))


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        build(tmp_path, conv_net(), image=image_rows(40))
        return tmp_path / "build"

    @pytest.mark.parametrize("name", [PREPARED, QUANTIZED, PROOF])
    def test_a_missing_or_changed_file_is_refused(self, folder: Path, name: str) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(InvalidArtifactError, match=name.replace(".", r"\.")):
            load_engine(folder, SMALL, threads=1, cache=None)
        (folder / name).unlink()
        with pytest.raises(InvalidArtifactError, match=name.replace(".", r"\.")):
            load_engine(folder, SMALL, threads=1, cache=None)

    def test_only_the_artifact_and_the_proof_are_needed(self, folder: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in (PREPARED, QUANTIZED, PROOF):
            (bare / name).write_bytes((folder / name).read_bytes())
        loaded = load_engine(bare, SMALL, threads=1, cache=None)
        loaded.engine.close()
        assert loaded.precision is Precision.INT8

    def test_an_engine_that_answers_differently_here_gives_way_to_fp32(self, folder: Path) -> None:
        other = load_model(folder / QUANTIZED).proto
        scale = next(t for t in other.graph.initializer if t.name.endswith("_scale") and list(t.dims))
        value = onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(3), scale.name))
        (folder / QUANTIZED).write_bytes(other.SerializeToString())
        self.reseal(folder, scores=1.0)
        loaded = load_engine(folder, SMALL, threads=1, cache=None)
        loaded.engine.close()
        assert loaded.precision is Precision.FP32
        assert "misses its contract" in str(loaded.refusal)
        assert str(loaded.refusal).endswith(", so FP32 serves.")
        assert loaded.verification.value is not None
        assert 60 < loaded.verification.value <= BEST_DB

    def test_where_not_even_fp32_reproduces_its_proof_nothing_answers(self, folder: Path) -> None:
        self.reseal(folder, scores=1.5)
        with pytest.raises(EngineRefusedError, match="no engine of this version may answer on this machine"):
            load_engine(folder, SMALL, threads=1, cache=None)

    @staticmethod
    def reseal(folder: Path, *, scores: float) -> None:
        """Seals the files as they are now, FP32's answers multiplied by `scores`."""
        proof = Proof.load(folder / PROOF)
        for batch in proof.batches:
            for array in batch.outputs.values():
                np.multiply(array, scores, out=array, casting="unsafe")
        Proof(
            batches=proof.batches,
            contract=proof.contract,
            hashes={name: sha256(folder / name) for name in proof.hashes},
            free_rows=proof.free_rows,
            unbatchable=proof.unbatchable,
        ).save(folder / PROOF)


def test_nothing_of_an_earlier_build_in_the_same_folder_is_used(tmp_path: Path) -> None:
    given = Inputs.of(tmp_path, conv_net(), image=image_rows(40))
    quantize(given.model, [given.samples, given.samples], tmp_path / "build", SMALL, threads=1)
    fp32 = BuildOptions.parse({"precision": "fp32", "batching": {"max_batch_rows": 4}})
    report = build(tmp_path, mlp(), fp32, vector=vector_rows(16))
    assert report.evidence.calibrate_rows == 8
    assert (report.sizes.quantized_bytes, report.thresholds) == (None, {})
    assert set(Proof.load(tmp_path / "build" / PROOF).hashes) == {PREPARED}
    assert [path.suffix for path in (tmp_path / "build" / SAMPLES).iterdir()].count(".npy") == 1
