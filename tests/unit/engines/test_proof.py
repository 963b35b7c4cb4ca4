"""Proofs: sealed once, replayed by real engines, and damage to them is noticed."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.errors import CalibrationError, EngineRunError, InvalidArtifactError, InvalidOptionsError
from engines.fidelity.accuracy import BEST_DB
from engines.model.model import load_model
from engines.model.tensors import Array
from engines.options import Contract, Metric, Precision
from engines.proof.batches import MAX_PROOF_BYTES, PROOF_ROWS
from engines.proof.padding import NO_LENGTH, Padding
from engines.proof.proof import FP32_MIN_DB, Proof
from engines.proof.sealed import read_sealed, write_sealed
from engines.runtimes.base import Engine
from engines.runtimes.reference import ReferenceRuntime, ReferenceSession
from engines.samples.importing import import_samples
from engines.samples.sample_set import SampleView
from tests.unit.engines.onnx_graphs import GraphBuilder, conv_net, floats, image_rows, mlp, vector_rows
from tests.unit.engines.text_graphs import encoder, sentences


def samples(folder: Path, model: onnx.ModelProto, *files: dict[str, Array]) -> SampleView:
    paths = []
    for number, arrays in enumerate(files):
        paths.append(folder / f"{number}.npz")
        np.savez(paths[-1], allow_pickle=False, **arrays)
    inputs = load_model(model.SerializeToString()).inputs
    # Fewer than four rows are not split, so that these tests choose the verify rows.
    views = import_samples(paths, inputs, folder / "samples")
    return SampleView(views, np.arange(views.rows))


def seal(
    folder: Path, model: onnx.ModelProto, *files: dict[str, Array], contract: Contract | None = None
) -> Proof:
    path = folder / "prepared.onnx"
    path.write_bytes(model.SerializeToString())
    session = ReferenceSession(path, threads=1)
    view = samples(folder, model, *files)
    return Proof.seal(session, view, contract or Contract(), {"prepared.onnx": path})


def engine(folder: Path, model: onnx.ModelProto) -> Engine:
    path = folder / "engine.onnx"
    path.write_bytes(model.SerializeToString())
    return ReferenceRuntime().compile(path, threads=1)


def shaken(model: onnx.ModelProto, noise: float) -> onnx.ModelProto:
    """The model with noise on its last weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in reversed(copy.graph.initializer) if len(t.dims) == 2)
    value = numpy_helper.to_array(tensor)
    random = np.random.default_rng(0).normal(size=value.shape)
    tensor.CopyFrom(
        numpy_helper.from_array((value + noise * random * value.std()).astype(np.float32), tensor.name)
    )
    return copy


def test_the_same_model_reproduces_its_proof(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(40)})
    with engine(tmp_path, mlp()) as candidate:
        verification = proof.replay(candidate, Precision.FP32)
    assert verification.holds
    assert verification.value == pytest.approx(BEST_DB)
    assert verification.unbatchable is None
    assert verification.accuracy is not None
    assert verification.accuracy.outputs[0].rows == 40
    assert proof.rows == 40
    assert [batch.size for batch in proof.batches] == [PROOF_ROWS, PROOF_ROWS]


def test_an_8_bit_engine_is_held_to_the_contract(tmp_path: Path) -> None:
    strict = Contract(metric=Metric.SQNR_DB, min=35)
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(40)}, contract=strict)
    with engine(tmp_path, shaken(mlp(), 0.001)) as close, engine(tmp_path, shaken(mlp(), 0.1)) as far:
        assert proof.replay(close, Precision.INT8).holds
        missed = proof.replay(far, Precision.INT8)
    assert not missed.holds
    assert missed.miss is not None
    assert missed.miss.startswith("the 8-bit engine misses its contract: output 'scores': SQNR 1")
    assert missed.miss.endswith("and its contract asks for 35")


def test_an_fp32_engine_has_to_be_fp32_whatever_the_contract_is(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(40)}, contract=Contract(min=1))
    with engine(tmp_path, shaken(mlp(), 0.05)) as candidate:
        assert proof.replay(candidate, Precision.INT8).holds
        verification = proof.replay(candidate, Precision.FP32)
    assert not verification.holds
    assert "'scores'" in str(verification.miss)
    assert "under 40 dB" in str(verification.miss)


def test_the_default_contract_shows_each_clause_with_what_was_measured(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(40)})
    with engine(tmp_path, shaken(mlp(), 0.001)) as close, engine(tmp_path, shaken(mlp(), 2.0)) as far:
        kept, missed = proof.replay(close, Precision.INT8), proof.replay(far, Precision.INT8)
        assert proof.replay(close, Precision.FP32).clauses == ()
    assert [clause.measure for clause in kept.clauses] == [
        "sqnr_db",
        "row_sqnr_p5_db",
        "variation_sqnr_db",
        "top1_weighted",
    ]
    assert kept.holds
    assert kept.value == kept.clauses[0].value
    assert not missed.holds
    assert "more of its clauses are missed" in str(missed.miss)


def test_fp32_may_round_what_is_zero_throughout(tmp_path: Path) -> None:
    def zeros(offset: float) -> onnx.ModelProto:
        graph = GraphBuilder()
        graph.node("Sub", ["vector", "vector"], "nothing")
        graph.node("Add", ["nothing", graph.constant("offset", np.array([offset], np.float32))], "scores")
        return graph.model([floats("vector", "n", 12)], [floats("scores", "n", 12)])

    proof = seal(tmp_path, zeros(0), {"vector": vector_rows(40)})
    with engine(tmp_path, zeros(1e-6)) as rounded, engine(tmp_path, zeros(1e-3)) as wrong:
        assert proof.replay(rounded, Precision.FP32).holds
        assert (
            proof.replay(wrong, Precision.FP32).miss
            == "the FP32 engine's output 'scores' is 0.001 where FP32's is zero"
        )


def test_nan_where_fp32_is_zero_throughout_is_refused(tmp_path: Path) -> None:
    def ratio(divisor: float) -> onnx.ModelProto:
        graph = GraphBuilder()
        graph.node("Sub", ["vector", "vector"], "nothing")
        graph.node("Div", ["nothing", graph.constant("divisor", np.array(divisor, np.float32))], "scores")
        return graph.model([floats("vector", "n", 12)], [floats("scores", "n", 12)])

    proof = seal(tmp_path, ratio(1), {"vector": vector_rows(40)})
    with engine(tmp_path, ratio(0)) as broken:
        assert "is -200.0 dB from FP32's" in str(proof.replay(broken, Precision.FP32).miss)


def test_every_engine_of_a_model_that_arrived_quantized_is_held_to_the_contract(tmp_path: Path) -> None:
    proof = dataclasses.replace(seal(tmp_path, mlp(), {"vector": vector_rows(40)}), arrived=True)
    with engine(tmp_path, shaken(mlp(), 0.02)) as close, engine(tmp_path, shaken(mlp(), 1.0)) as far:
        assert proof.replay(close, Precision.FP32).holds
        assert str(proof.replay(far, Precision.FP32).miss).startswith("the engine misses its contract")


def test_the_roundings_of_a_16_bit_model_are_not_held_against_an_fp32_engine(tmp_path: Path) -> None:
    proof = dataclasses.replace(seal(tmp_path, mlp(), {"vector": vector_rows(40)}), half=True)
    proof.save(tmp_path / "proof.npz")
    with engine(tmp_path, shaken(mlp(), 0.02)) as close, engine(tmp_path, shaken(mlp(), 0.1)) as far:
        verification = Proof.load(tmp_path / "proof.npz").replay(close, Precision.FP32)
        assert verification.value is not None
        assert verification.value < FP32_MIN_DB
        assert verification.holds
        assert "under 30 dB" in str(proof.replay(far, Precision.FP32).miss)


def test_an_engine_of_another_model_fails_in_a_sentence_and_raises_nothing(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(8)})
    with engine(tmp_path, mlp(classes=5)) as candidate:
        verification = proof.replay(candidate, Precision.INT8)
    assert not verification.holds
    assert "output 'scores' has the shape [8, 5]; FP32 gives [8, 4]" in str(verification.miss)
    with engine(tmp_path, conv_net()) as candidate:
        assert "lacks the input 'image'" in str(proof.replay(candidate, Precision.INT8).miss)


def test_rows_that_fill_a_batch_do_not_count(tmp_path: Path) -> None:
    rows = vector_rows(33)
    proof = seal(tmp_path, mlp(), {"vector": rows})
    assert [(batch.rows, batch.size) for batch in proof.batches] == [(32, 32), (1, 32)]
    with engine(tmp_path, mlp()) as candidate:
        accuracy = proof.replay(candidate, Precision.FP32).accuracy
    assert accuracy is not None
    assert accuracy.outputs[0].rows == 33


def test_a_fixed_batch_is_run_at_no_other_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = seal(tmp_path, mlp(rows=4), {"vector": vector_rows(10)})
    assert [(batch.rows, batch.size) for batch in proof.batches] == [(4, 4), (4, 4), (2, 4)]
    assert not proof.free_rows
    sizes: set[int] = set()
    with engine(tmp_path, mlp(rows=4)) as candidate:
        run = candidate.run

        def spy(feeds: Mapping[str, Array]) -> dict[str, Array]:
            sizes.add(len(feeds["vector"]))
            return run(feeds)

        monkeypatch.setattr(candidate, "run", spy)
        verification = proof.replay(candidate, Precision.FP32)
    assert verification.holds
    assert verification.unbatchable is None
    assert sizes == {4}


def test_a_fixed_batch_of_one_row_needs_no_company(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(rows=1), {"vector": vector_rows(3)})
    assert proof.unbatchable is None
    with engine(tmp_path, mlp(rows=1)) as candidate:
        assert proof.replay(candidate, Precision.FP32).unbatchable is None


def softmax_over_the_batch() -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 4)], "logits")
    graph.node("Softmax", ["logits"], "scores", axis=0)
    return graph.model([floats("vector", "n", 12)], [floats("scores", "n", 4)])


def minus_the_batch_mean() -> onnx.ModelProto:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 4)], "logits")
    graph.node("ReduceMean", ["logits"], "mean", axes=[0])
    graph.node("Sub", ["logits", "mean"], "scores")
    return graph.model([floats("vector", "n", 12)], [floats("scores", "n", 4)])


@pytest.mark.parametrize("model", [softmax_over_the_batch(), minus_the_batch_mean()])
@pytest.mark.parametrize("rows", [2, 3, 20])
def test_a_model_whose_rows_influence_each_other_is_found_out_on_fp32(
    tmp_path: Path, model: onnx.ModelProto, rows: int
) -> None:
    proof = seal(tmp_path, model, {"vector": vector_rows(rows)})
    assert str(proof.unbatchable).startswith("a row's 'scores' changes when its batch is")
    with engine(tmp_path, model) as candidate:
        verification = proof.replay(candidate, Precision.FP32)
    assert verification.holds
    assert verification.unbatchable == proof.unbatchable


def test_rows_that_influenced_each_other_in_fp32_share_no_batch_of_any_engine(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 4)], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "n", 4)])
    proof = dataclasses.replace(seal(tmp_path, model, {"vector": vector_rows(20)}), unbatchable="seen")
    with engine(tmp_path, model) as candidate:
        assert proof.replay(candidate, Precision.FP32).unbatchable == "seen"


def test_an_engine_whose_rows_influence_each_other_is_found_out_though_fp32_has_none(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Gemm", ["vector", graph.weight("w", 12, 4)], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "n", 4)])
    proof = seal(tmp_path, model, {"vector": vector_rows(20)}, contract=Contract(min=-10))
    assert proof.unbatchable is None
    with engine(tmp_path, minus_the_batch_mean()) as candidate:
        verification = proof.replay(candidate, Precision.INT8)
    assert verification.holds
    assert verification.unbatchable is not None


def test_a_single_row_proves_nothing_about_company(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(1)})
    assert "upload more samples" in str(proof.unbatchable)


def test_rows_of_different_shapes_are_proven_apart(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 4, 3, 3, 3)], "conv")
    graph.node("GlobalMaxPool", ["conv"], "scores")
    model = graph.model([floats("image", "n", 3, "h", "w")], [floats("scores", "n", 4, 1, 1)])
    wide = np.repeat(image_rows(5), 2, axis=3)
    proof = seal(tmp_path, model, {"image": image_rows(3)}, {"image": wide})
    assert [(b.rows, b.inputs["image"].shape[1:]) for b in proof.batches] == [(3, (3, 8, 8)), (5, (3, 8, 16))]
    with engine(tmp_path, model) as candidate:
        verification = proof.replay(candidate, Precision.FP32)
    assert verification.holds
    assert verification.unbatchable is None


def test_a_proof_is_bounded_in_bytes_and_keeps_at_least_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = vector_rows(1).nbytes + 4 * 4
    monkeypatch.setattr("engines.proof.batches.MAX_PROOF_BYTES", 70 * row_bytes)
    assert seal(tmp_path, mlp(), {"vector": vector_rows(200)}).rows == 64
    monkeypatch.setattr("engines.proof.batches.MAX_PROOF_BYTES", 1)
    tiny = seal(tmp_path, mlp(), {"vector": vector_rows(200)})
    assert [(batch.rows, batch.size) for batch in tiny.batches] == [(1, 1)]
    assert MAX_PROOF_BYTES == 64 << 20


def test_nan_from_fp32_stops_the_build_and_names_the_output(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Sqrt", ["vector"], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", "n", 12)])
    with pytest.raises(CalibrationError, match="itself answers NaN in output 'scores'"):
        seal(tmp_path, model, {"vector": vector_rows(4)})


def test_a_model_that_fails_on_the_samples_stops_the_build(tmp_path: Path) -> None:
    graph = GraphBuilder()
    shape = graph.constant("shape", np.array([5, -1]))
    graph.node("Reshape", ["vector", shape], "folded")
    graph.node("Reshape", ["folded", graph.constant("back", np.array([-1, 12]))], "scores")
    model = graph.model([floats("vector", "n", 12)], [floats("scores", None, 12)])
    with pytest.raises(CalibrationError, match=r"does not run on the samples: .*'folded_node'"):
        seal(tmp_path, model, {"vector": vector_rows(4)})


def test_a_contract_that_does_not_fit_the_model_is_an_option_error(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 4, 3, 3, 3)], "maps")
    model = graph.model([floats("image", "n", 3, 8, 8)], [floats("maps", "n", 4, 6, 6)])
    contract = Contract(metric=Metric.TOP1_AGREEMENT, min=0.9)
    proof = seal(tmp_path, model, {"image": image_rows(4)}, contract=contract)
    with engine(tmp_path, model) as candidate, pytest.raises(InvalidOptionsError, match="class scores"):
        proof.replay(candidate, Precision.INT8)


def test_a_saved_proof_is_read_back_as_it_was(tmp_path: Path) -> None:
    contract = Contract(metric=Metric.COSINE, min=0.9)
    proof = seal(tmp_path, softmax_over_the_batch(), {"vector": vector_rows(40)}, contract=contract)
    proof.save(tmp_path / "proof.npz")
    read = Proof.load(tmp_path / "proof.npz")
    assert (read.contract, read.hashes, read.free_rows, read.unbatchable) == (
        proof.contract,
        proof.hashes,
        proof.free_rows,
        proof.unbatchable,
    )
    for old, new in zip(proof.batches, read.batches, strict=True):
        assert old.rows == new.rows
        assert list(old.inputs) == list(new.inputs)
        assert list(old.outputs) == list(new.outputs)
        for name in old.outputs:
            np.testing.assert_array_equal(old.outputs[name], new.outputs[name])
    assert sorted(path.name for path in tmp_path.glob("proof*")) == ["proof.npz"]


def damaged(content: bytes) -> Sequence[bytes]:
    middle = len(content) // 2
    flipped = bytearray(content)
    flipped[middle] ^= 1
    return b"", b"no proof", content[:middle], content[:-1], bytes(flipped)


def test_a_damaged_proof_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "proof.npz"
    seal(tmp_path, mlp(), {"vector": vector_rows(8)}).save(path)
    content = path.read_bytes()
    for bad in damaged(content):
        path.write_bytes(bad)
        with pytest.raises(InvalidArtifactError, match=r"'proof\.npz'") as caught:
            Proof.load(path)
        assert str(caught.value).endswith("restore it or build the version again.")
    path.unlink()
    with pytest.raises(InvalidArtifactError):
        Proof.load(path)


@pytest.mark.parametrize("what", ["header", "array", "missing"])
def test_a_proof_that_was_changed_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "proof.npz"
    seal(tmp_path, mlp(), {"vector": vector_rows(8)}).save(path)
    with np.load(path) as stored:
        members = {name: stored[name] for name in stored.files}
    if what == "header":
        text = members["header"].tobytes().replace(b'"min": 20.0', b'"min": 10.0')
        members["header"] = np.frombuffer(text, np.uint8)
    elif what == "array":
        members["0.out.0"] = members["0.out.0"] * 2
    else:
        del members["0.out.0"]
    np.savez(path, allow_pickle=False, **members)
    with pytest.raises(InvalidArtifactError, match="was changed after it was sealed"):
        Proof.load(path)


def test_a_proof_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "proof.npz"
    seal(tmp_path, mlp(), {"vector": vector_rows(8)}).save(path)
    header, arrays = read_sealed(path)
    write_sealed(path, header | {"format": 2}, arrays)
    with pytest.raises(InvalidArtifactError, match="has the format 2, this octet reads 1"):
        Proof.load(path)


def test_an_artifact_that_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(8)})
    proof.check(tmp_path)
    path = tmp_path / "prepared.onnx"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    with pytest.raises(InvalidArtifactError, match=r"'prepared.onnx' is not the file that was proven"):
        proof.check(tmp_path)
    path.unlink()
    with pytest.raises(InvalidArtifactError, match=r"lacks 'prepared.onnx'"):
        proof.check(tmp_path)


class _FailingEngine(Engine):
    inputs = ()
    outputs = ()

    def slot(self, shapes: object) -> object:  # type: ignore[override] # it never returns
        raise EngineRunError("the device is gone.")

    def close(self) -> None: ...


def test_an_engine_that_fails_may_neither_answer_nor_batch(tmp_path: Path) -> None:
    proof = seal(tmp_path, mlp(), {"vector": vector_rows(8)})
    verification = proof.replay(_FailingEngine(), Precision.INT8)
    assert verification.accuracy is None
    assert not verification.holds
    assert verification.unbatchable is not None


def test_padding_that_is_proven_on_fp32_is_sealed_and_replayed(tmp_path: Path) -> None:
    proof = seal(tmp_path, encoder(), sentences(12, 24))
    assert isinstance(proof.padding, Padding)
    proof.save(tmp_path / "proof.npz")
    assert Proof.load(tmp_path / "proof.npz").padding == proof.padding
    with engine(tmp_path, encoder()) as candidate:
        assert proof.replay(candidate, Precision.FP32).unpadded is None
    with engine(tmp_path, encoder(masked=False)) as candidate:
        assert "'scores' changes" in str(proof.replay(candidate, Precision.FP32).unpadded)


def test_padding_that_fp32_does_not_take_is_not_tried_on_engines(tmp_path: Path) -> None:
    proof = seal(tmp_path, encoder(masked=False), sentences(12, 24))
    with engine(tmp_path, encoder()) as candidate:
        assert "'scores' changes" in str(proof.replay(candidate, Precision.FP32).unpadded)


def test_the_longest_rows_are_those_that_padding_is_tried_on(tmp_path: Path) -> None:
    proof = seal(tmp_path, encoder(), sentences(12, 8), sentences(12, 30), sentences(12, 16))
    assert isinstance(proof.padding, Padding)
    assert proof.padding.longest == 30


def test_models_of_fixed_rows_have_nothing_to_pad(tmp_path: Path) -> None:
    assert seal(tmp_path, mlp(), {"vector": vector_rows(8)}).padding == NO_LENGTH
