"""Models that differ from one float input, one float output and weights of their own; each from file to verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.building import quantize
from engines.errors import InvalidArtifactError, UnsupportedModelError
from engines.loading import load_engine
from engines.model import external_weights
from engines.model.tensors import Array
from engines.options import BuildOptions, Precision
from engines.proof.proof import Proof
from engines.reports.report import Report, Verdict
from engines.workspace import CALIBRATION, HISTOGRAMS, PREPARED, PROOF, QUANTIZED
from tests.unit.engines import odd_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats, image_rows

ROWS = 64
CUTS = (slice(0, 1), slice(1, 6), slice(6, None))
"""Of rows, into files of 1, 5 and the others."""


def build(folder: Path, model: onnx.ModelProto, *samples: Mapping[str, Array]) -> Report:
    """Quantizes with the default options, each of `samples` in a file of its own."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    files = [folder / f"samples-{number}.npz" for number in range(len(samples))]
    for file, arrays in zip(files, samples, strict=True):
        np.savez(file, allow_pickle=False, **arrays)
    return quantize(path, files, folder / "build", threads=1)


def rows_of(name: str, *item: int, rows: int = ROWS) -> dict[str, Array]:
    return {name: np.random.default_rng(1).normal(size=(rows, *item)).astype(np.float32)}


def assert_served_in_8_bits(report: Report, *, layers: int, sqnr_db: Mapping[str, float]) -> None:
    """Every floating output reaches what it did when the test was written, less 3 dB."""
    assert (report.verdict, report.reason, report.serving) == (Verdict.ACCEPTED, None, Precision.INT8)
    assert (len(report.layers.quantized), report.layers.skipped) == (layers, ())
    assert report.quantized is not None
    seen = {output.name: output.sqnr_db for output in report.quantized.outputs if output.sqnr_db is not None}
    assert seen.keys() == sqnr_db.keys()
    assert all(seen[name] > least for name, least in sqnr_db.items()), seen


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    samples = {**rows_of("left", 24), **rows_of("right", 16)}
    report = build(tmp_path, odd_graphs.two_towers(), samples)
    assert_served_in_8_bits(report, layers=3, sqnr_db={"scores": 33, "gates": 40})
    assert report.batching.batchable


def test_integer_inputs(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.encoder(length=12), odd_graphs.token_rows(ROWS, 12))
    assert_served_in_8_bits(report, layers=2, sqnr_db={"pooled": 38})
    assert report.batching.batchable


@pytest.mark.parametrize(
    "lengths",
    [(5, 9, 12, 20), tuple(3 + number % 7 for number in range(40))],
    ids=["few files of many rows", "many files of one row"],
)
def test_rows_of_different_lengths_in_several_files(tmp_path: Path, lengths: Sequence[int]) -> None:
    rows = ROWS // len(lengths)
    files = [odd_graphs.token_rows(rows, length, seed=seed) for seed, length in enumerate(lengths)]
    report = build(tmp_path, odd_graphs.encoder(), *files)
    assert_served_in_8_bits(report, layers=2, sqnr_db={"pooled": 33})
    assert report.evidence.proof_rows == report.evidence.verify_rows == rows * len(lengths) // 4
    assert report.batching.batchable
    assert [latency.rows for latency in report.latencies] == [1, 32]


def test_however_rows_of_different_lengths_are_cut_into_files_the_bytes_are_the_same(tmp_path: Path) -> None:
    whole = [odd_graphs.token_rows(10, length, seed=length) for length in (5, 9, 12)]
    parts = [{name: array[rows] for name, array in arrays.items()} for arrays in whole for rows in CUTS]
    found = []
    for samples in (whole, parts):
        build(tmp_path, odd_graphs.encoder(), *samples)
        names = (PREPARED, CALIBRATION, HISTOGRAMS, QUANTIZED, PROOF)
        found.append({name: (tmp_path / "build" / name).read_bytes() for name in names})
    assert found[0] == found[1]


def test_an_initializer_that_several_layers_read(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.shared_weight(), rows_of("vector", 32))
    assert_served_in_8_bits(report, layers=3, sqnr_db={"scores": 31})


def test_weights_in_constant_nodes(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.constant_nodes(), rows_of("vector", 24))
    assert_served_in_8_bits(report, layers=1, sqnr_db={"scores": 37})


def test_gemm_with_transposed_weights_and_factors(tmp_path: Path) -> None:
    graph = GraphBuilder()
    weight, bias = graph.weight("weight", 32, 24), graph.weight("bias", 32)
    graph.node("Gemm", ["vector", weight, bias], "scores", transB=1, alpha=0.5, beta=2.0)
    report = build(
        tmp_path, graph.model([floats("vector", "n", 24)], [floats("scores", "n", 32)]), rows_of("vector", 24)
    )
    assert_served_in_8_bits(report, layers=1, sqnr_db={"scores": 38})


def test_the_outputs_of_a_detector(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.detector(), {"image": image_rows(ROWS)})
    assert_served_in_8_bits(report, layers=3, sqnr_db={"boxes": 35, "scores": 40})
    assert report.quantized is not None
    labels = {output.name: output.equal_share for output in report.quantized.outputs}["labels"]
    assert labels is not None
    assert labels > 0.95


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 22])
def test_opsets_from_7_to_22(tmp_path: Path, opset: int) -> None:
    model = odd_graphs.flattening_net(opset=opset)
    report = build(tmp_path, model, {"image": image_rows(ROWS)})
    assert_served_in_8_bits(report, layers=2, sqnr_db={"scores": 33})


def test_samples_that_are_too_few_to_judge_by_fit_nothing(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.shared_weight(), rows_of("vector", 32, rows=3))
    assert report.choices is not None
    assert {(each.variant, each.fitted) for each in report.choices.candidates} == {("prepared", False)}
    assert "too few to keep some aside" in (report.evidence.weak or "")


def test_samples_that_are_all_the_same_are_weak_evidence(tmp_path: Path) -> None:
    report = build(tmp_path, odd_graphs.shared_weight(), {"vector": np.ones((ROWS, 32), np.float32)})
    assert "all its rows are the same, which shows nothing of other inputs" in (report.evidence.weak or "")


def branching() -> onnx.ModelProto:
    out = floats("branch", "n", 24)
    branches = {
        key: helper.make_graph([helper.make_node(operator, ["vector"], ["branch"])], key, [], [out])
        for key, operator in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    graph = GraphBuilder()
    graph.node("ReduceSum", ["vector"], "sum", keepdims=0)
    graph.node("Cast", ["sum"], "positive", to=TensorProto.BOOL)
    graph.node("If", ["positive"], "scores", **branches)
    return graph.model([floats("vector", "n", 24)], [floats("scores", "n", 24)])


def looping() -> onnx.ModelProto:
    scalar = [helper.make_tensor_value_info("step", TensorProto.INT64, [])]
    scalar.append(helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []))
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["still"]), helper.make_node("Relu", ["value"], ["next"])],
        "body",
        [*scalar, floats("value", "n", 24)],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), floats("next", "n", 24)],
    )
    graph = GraphBuilder()
    trips = [graph.constant("trips", np.array(3)), graph.constant("condition", np.ones((), np.bool_))]
    graph.node("Loop", [*trips, "vector"], "scores", body=body)
    return graph.model([floats("vector", "n", 24)], [floats("scores", "n", 24)])


@pytest.mark.parametrize(("operator", "model"), [("If", branching()), ("Loop", looping())])
def test_control_flow_is_refused_with_a_remedy(tmp_path: Path, operator: str, model: onnx.ModelProto) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=rf"'scores_node' \({operator}\) is control flow.*fixed branches and unrolled loops",
    ):
        build(tmp_path, model, rows_of("vector", 24))


@pytest.mark.parametrize("rows", [1, 4])
def test_a_fixed_batch_is_served_as_a_free_one(tmp_path: Path, rows: int) -> None:
    report = build(tmp_path, odd_graphs.detector(rows=rows), {"image": image_rows(ROWS)})
    assert_served_in_8_bits(report, layers=3, sqnr_db={"boxes": 33, "scores": 40})
    assert report.batching.model_dump() == {
        "batchable": True,
        "reason": None,
        "uploaded_rows": rows,
        "rewritten": True,
        "stays_fixed": None,
        "unpadded": None,
        "mask": None,
    }
    assert [latency.rows for latency in report.latencies] == [1, 32]
    with load_engine(tmp_path / "build", BuildOptions(), threads=1).engine as engine:
        image = image_rows(7, seed=5)
        together = engine.run({"image": image})
        for row in range(7):
            alone = engine.run({"image": image[row : row + 1]})
            np.testing.assert_allclose(together["boxes"][row], alone["boxes"][0], atol=0.1)


def test_a_batch_that_cannot_be_freed_stays_and_the_report_says_why(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Squeeze", ["vector", graph.constant("first", np.array([0]))], "row")
    graph.node("Unsqueeze", ["row", "first"], "again")
    graph.node("MatMul", ["again", graph.weight("weight", 24, 32)], "scores")
    model = graph.model([floats("vector", 1, 24)], [floats("scores", 1, 32)])
    report = build(tmp_path, model, rows_of("vector", 24))
    assert_served_in_8_bits(report, layers=1, sqnr_db={"scores": 37})
    assert not report.batching.rewritten
    assert report.batching.uploaded_rows == 1
    assert report.batching.stays_fixed == "node 'row_node' (Squeeze) holds on to the batch"
    assert [latency.rows for latency in report.latencies] == [1]


def test_a_model_in_fp16_runs_in_8_bits_behind_its_own_types(tmp_path: Path) -> None:
    image = image_rows(ROWS)
    report = build(tmp_path, odd_graphs.in_half_precision(odd_graphs.detector(rows=1)), {"image": image})
    assert_served_in_8_bits(report, layers=3, sqnr_db={"boxes": 33, "scores": 40})
    assert report.batching.batchable
    assert report.batching.rewritten
    with load_engine(tmp_path / "build", BuildOptions(), threads=1).engine as engine:
        assert [spec.dtype.name for spec in (*engine.inputs, *engine.outputs)] == [
            "float16",
            "float16",
            "float16",
            "int64",
        ]
        assert engine.run({"image": image[:3].astype(np.float16)})["boxes"].dtype == np.float16


def test_a_model_in_bfloat16_is_refused_with_a_remedy(tmp_path: Path) -> None:
    model = odd_graphs.in_half_precision(odd_graphs.two_towers(), TensorProto.BFLOAT16)
    with pytest.raises(UnsupportedModelError, match=r"computes in bfloat16.*in float16 or float32"):
        build(tmp_path, model, {**rows_of("left", 24), **rows_of("right", 16)})


def test_a_model_too_large_for_one_file_keeps_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = odd_graphs.detector(rows=1), image_rows(ROWS)
    onnx.save(
        model, tmp_path / "large.onnx", save_as_external_data=True, location="large.bin", size_threshold=64
    )
    np.savez(tmp_path / "samples.npz", allow_pickle=False, image=image)
    monkeypatch.setattr(external_weights, "MAX_INLINE_BYTES", 500)
    monkeypatch.setattr(external_weights, "_SMALLEST_BYTES", 200)
    report = quantize(
        tmp_path / "large.onnx",
        [tmp_path / "samples.npz"],
        tmp_path / "build",
        weights=[tmp_path / "large.bin"],
        threads=1,
    )
    assert_served_in_8_bits(report, layers=3, sqnr_db={"boxes": 33, "scores": 40})
    assert report.batching.rewritten
    folder = tmp_path / "build"
    assert report.sizes.prepared_bytes == sum(path.stat().st_size for path in folder.glob("prepared.onnx*"))
    assert set(Proof.load(folder / "proof.npz").hashes) == {
        "prepared.onnx",
        "prepared.onnx.data",
        "quantized.onnx",
        "quantized.onnx.data",
    }
    for name in (tmp_path / "large.bin", *folder.glob("upload/*")):
        name.unlink()
    with load_engine(folder, BuildOptions(), threads=1, cache=tmp_path / "cache").engine as engine:
        assert engine.run({"image": image[:5]})["labels"].shape == (5, 64)
    weights = folder / "quantized.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(InvalidArtifactError, match=r"quantized.onnx.data' is not the file that was proven"):
        load_engine(folder, BuildOptions(), threads=1)
