"""Labels: checked like any upload, matched to the verify rows, and counted for both engines."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.errors import InvalidSamplesError
from engines.model.model import load_model
from engines.model.tensors import Array, TensorSpec
from engines.options import Contract
from engines.proof.proof import Proof
from engines.runtimes.reference import ReferenceRuntime, ReferenceSession
from engines.samples.importing import SampleView, import_samples
from engines.samples.labels import answered_right, class_output, read_labels, task_report
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

ROWS = 50
SCORES = TensorSpec(name="scores", dtype=np.dtype(np.float32), shape=(None, 4))


def spec(name: str, kind: Any, *shape: int | None) -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(kind), shape=shape)


def saved(folder: Path, labels: NDArray[Any]) -> Path:
    path = folder / "labels.npy"
    np.save(path, labels, allow_pickle=labels.dtype == object)
    return path


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ([spec("scores", np.float32, None, 10), spec("maps", np.float32, None, 3, 4)], "scores"),
        ([spec("scores", np.float32, None, 10), spec("label", np.int64, None)], "scores"),
        ([spec("age", np.float32, None, 1), spec("label", np.int64, None, 1)], "label"),
        ([spec("scores", np.float16, None, None)], "scores"),
    ],
)
def test_the_only_output_that_may_hold_classes_is_taken(outputs: list[TensorSpec], name: str) -> None:
    assert class_output(outputs).name == name


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (
            [spec("maps", np.float32, None, 3, 4), spec("ids", np.int64, None, 5)],
            r"no output .*maps float32 .*leave",
        ),
        (
            [spec("first", np.float32, None, 10), spec("second", np.float32, None, 5)],
            r"several outputs .*'first', 'second'.*export the model with one",
        ),
    ],
)
def test_a_model_that_is_no_classifier_takes_no_labels(outputs: list[TensorSpec], words: str) -> None:
    with pytest.raises(InvalidSamplesError, match=words):
        class_output(outputs)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_labels_are_integers_one_for_each_row(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    labels = np.arange(ROWS) % 4
    read = read_labels(saved(tmp_path, labels.astype(kind).reshape(shape)), ROWS, SCORES)
    assert read.tolist() == labels.tolist()
    assert read.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(ROWS - 1), rf"shape \[{ROWS - 1}\], but there are {ROWS} samples"),
        (np.zeros((ROWS, 4), np.int64), rf"shape \[{ROWS}, 4\], but there are {ROWS} samples"),
        (np.zeros(ROWS), r"element type float64: save .* as integers"),
        (np.zeros(ROWS, np.bool_), "element type bool"),
        (np.array([None] * ROWS), "pickle.*, which octet never reads"),
        (np.full(ROWS, 4), r"label of row 0 is 4, but the classes of output 'scores' are 0 to 3"),
        (np.where(np.arange(ROWS) == 7, -1, 0), "label of row 7 is -1"),
        (np.full(ROWS, 2**63, np.uint64), "label of row 0 is 9223372036854775808"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, labels: NDArray[Any], words: str
) -> None:
    with pytest.raises(InvalidSamplesError, match=words):
        read_labels(saved(tmp_path, labels), ROWS, SCORES)


def test_an_archive_or_garbage_is_no_file_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    with path.open("wb") as file:
        np.savez(file, labels=np.zeros(ROWS, np.int64))
    with pytest.raises(InvalidSamplesError, match=r"\.npz of 1 arrays: save the one array"):
        read_labels(path, ROWS, SCORES)
    path.write_bytes(b"garbage")
    with pytest.raises(InvalidSamplesError, match="neither"):
        read_labels(path, ROWS, SCORES)


def test_labels_of_integer_outputs_have_no_largest_class(tmp_path: Path) -> None:
    label = spec("label", np.int64, None)
    assert read_labels(saved(tmp_path, np.full(ROWS, 1000)), ROWS, label).tolist() == [1000] * ROWS
    with pytest.raises(InvalidSamplesError, match="are 0 or more"):
        read_labels(saved(tmp_path, np.full(ROWS, -1)), ROWS, label)


def cut(*, first: int = 0, rows: int | str = "n", width: int | str = 12) -> onnx.ModelProto:
    """Scores that are four of the input's columns."""
    graph = GraphBuilder()
    bounds = [graph.constant(name, np.array([at])) for name, at in (("starts", first), ("ends", first + 4))]
    graph.node("Slice", ["vector", *bounds, graph.constant("axes", np.array([1]))], "scores")
    return graph.model([floats("vector", rows, width)], [floats("scores", rows, 4)])


def sealed(folder: Path, model: onnx.ModelProto, *files: Array) -> tuple[Proof, SampleView]:
    """The proof on the verify rows of these files, and those rows."""
    paths = []
    for number, array in enumerate(files):
        paths.append(folder / f"{number}.npz")
        np.savez(paths[-1], allow_pickle=False, vector=array)
    samples = import_samples(paths, load_model(model.SerializeToString()).inputs, folder / "samples")
    verify = samples.split().verify
    return Proof.seal(ReferenceSession(model.SerializeToString(), threads=1), verify, Contract(), {}), verify


def rows(count: int, *, seed: int = 0, width: int = 12) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def highest(*files: NDArray[np.float32], first: int = 0) -> NDArray[np.int64]:
    return np.concatenate([array[:, first : first + 4].argmax(axis=1) for array in files])


@pytest.mark.parametrize("fixed", ["n", 3])
def test_each_verify_row_is_held_against_its_own_label(tmp_path: Path, fixed: int | str) -> None:
    files = rows(90), rows(130, seed=1)
    proof, verify = sealed(tmp_path, cut(rows=fixed), *files)
    labels = highest(*files)
    assert proof.rows == verify.rows == 55
    assert answered_right(proof, verify, labels, SCORES).all()
    labels[verify.numbers[[0, 40]]] += 1
    assert np.flatnonzero(~answered_right(proof, verify, labels, SCORES)).tolist() == [0, 40]


def test_labels_follow_rows_that_are_grouped_by_their_shape(tmp_path: Path) -> None:
    files = rows(40), rows(40, seed=1, width=20), rows(40, seed=2)
    proof, verify = sealed(tmp_path, cut(width="width"), *files)
    assert [batch.inputs["vector"].shape[1] for batch in proof.batches] == [12, 20]
    assert answered_right(proof, verify, highest(*files), SCORES).all()


def test_an_engine_is_asked_again_and_a_proof_may_hold_fewer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.proof.batches.MAX_PROOF_BYTES", 40 * (12 + 4) * 4)
    values = rows(400)
    proof, verify = sealed(tmp_path, cut(), values)
    assert proof.rows < verify.rows
    path = tmp_path / "engine.onnx"
    path.write_bytes(cut(first=1).SerializeToString())
    labels = highest(values)
    with ReferenceRuntime().compile(path, threads=1) as engine:
        right = answered_right(proof, verify, labels, SCORES, engine)
    kept = verify.numbers[: proof.rows]
    assert right.tolist() == (highest(values, first=1) == labels)[kept].tolist()
    assert 0 < right.mean() < 1


def test_a_label_output_of_integers_is_compared_as_it_is(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("ArgMax", ["vector"], "label", axis=1, keepdims=1)
    label = onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n", 1])
    model = graph.model([floats("vector", "n", 12)], [label])
    values = rows(60)
    proof, verify = sealed(tmp_path, model, values)
    output = class_output(load_model(model.SerializeToString()).outputs)
    assert answered_right(proof, verify, values.argmax(axis=1), output).all()
    assert not answered_right(proof, verify, values.argmax(axis=1) + 1, output).any()


def test_a_row_of_nan_is_never_right(tmp_path: Path) -> None:
    values = rows(60)
    proof, verify = sealed(tmp_path, cut(), values)
    for batch in proof.batches:
        batch.outputs["scores"][:] = np.nan
    assert not answered_right(proof, verify, highest(values), SCORES).any()


def test_an_output_without_a_row_for_each_sample_cannot_be_labelled(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Reshape", ["vector", graph.constant("shape", np.array([-1, 4]))], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "m", 4)])
    proof, verify = sealed(tmp_path, model, rows(40))
    with pytest.raises(
        InvalidSamplesError, match="'scores' has 30 rows for 10 samples: leave the labels out"
    ):
        answered_right(proof, verify, np.zeros(40, np.int64), SCORES)


def test_the_report_has_both_accuracies_and_the_difference_of_the_same_rows() -> None:
    fp32, quantized = np.ones(100, np.bool_), np.ones(100, np.bool_)
    fp32[:10], quantized[5:13] = False, False
    report = task_report("scores", fp32, quantized)
    assert (report.rows, report.fp32_top1, report.quantized_top1) == (100, 0.90, 0.92)
    assert (report.gained_rows, report.lost_rows) == (5, 3)
    assert report.difference == pytest.approx(0.02)
    assert report.quantized_interval is not None
    assert report.difference_interval is not None
    assert report.fp32_interval.low < 0.90 < report.fp32_interval.high
    assert report.difference_interval.low < 0 < report.difference_interval.high


def test_without_an_8_bit_engine_fp32_is_reported_alone() -> None:
    report = task_report("scores", np.ones(10, np.bool_), None)
    assert (report.fp32_top1, report.quantized_top1, report.difference) == (1.0, None, None)
