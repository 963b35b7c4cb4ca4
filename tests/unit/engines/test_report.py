"""Reports: whole, honest about weak evidence, and plain JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidArtifactError
from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.fidelity.contract import Clause
from engines.options import Contract, Precision
from engines.reports.details import LatencyReport, speed_warnings
from engines.reports.report import (
    Batching,
    EngineReport,
    Evidence,
    Hardware,
    IntervalReport,
    Report,
    Sizes,
    TaskReport,
    Verdict,
    clause_reports,
    output_reports,
    versions,
    weak_evidence,
)
from engines.search.choices import Layers


def engine(sqnr_db: float, *, miss: str | None = None) -> EngineReport:
    scores = OutputAccuracy(name="scores", rows=64, sqnr_db=sqnr_db, cosine=0.99, top1_agreement=0.98)
    other = OutputAccuracy(name="other", rows=64, sqnr_db=sqnr_db + 5, cosine=0.97)
    label = OutputAccuracy(name="label", rows=64, equal_share=0.9)
    outputs = output_reports(Accuracy(outputs=(scores, other, label)))
    return EngineReport(holds=miss is None, miss=miss, value=sqnr_db, outputs=outputs)


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "verdict": Verdict.ACCEPTED,
        "reason": None,
        "requested": Precision.INT8,
        "serving": Precision.INT8,
        "contract": Contract(),
        "fp32": engine(130.0),
        "quantized": engine(35.0),
        "evidence": Evidence(
            calibrate_rows=128, tune_rows=64, verify_rows=64, proof_rows=64, disjoint=True, weak=None
        ),
        "batching": Batching(batchable=True, reason=None),
        "sizes": Sizes(uploaded_bytes=400, prepared_bytes=390, quantized_bytes=100),
        "layers": Layers(),
        "choices": None,
        "thresholds": {},
        "emulated": False,
        "latencies": (
            LatencyReport(rows=1, fp32_ms=2.0, quantized_ms=1.0),
            LatencyReport(rows=32, fp32_ms=30.0, quantized_ms=10.0),
        ),
        "hardware": Hardware(runtime="openvino", key="key", weight_bits=8, threads=2, processor="x"),
        "versions": versions(),
        "phases": {"verify": 1.5},
    }
    return Report(**fields | changes)


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report()
    json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"verdict": "accepted"}'])
def test_a_damaged_report_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArtifactError, match="the report is damaged; restore it"):
        Report.load(path)
    path.unlink()
    with pytest.raises(InvalidArtifactError, match=r"'report\.json' is missing; restore it"):
        Report.load(path)


def test_the_summary_is_of_the_engine_that_serves_and_of_its_worst_output() -> None:
    summary = report().summary()
    assert (summary["sqnr_db"], summary["cosine"], summary["top1_agreement"]) == (35.0, 0.97, 0.98)
    assert (summary["precision"], summary["speedup"]) == ("int8", 3.0)
    refused = report(
        verdict=Verdict.REFUSED, reason="it missed, so FP32 serves.", serving=Precision.FP32
    ).summary()
    assert (refused["sqnr_db"], refused["precision"], refused["speedup"]) == (130.0, "fp32", None)
    assert (refused["verdict"], refused["reason"]) == ("refused", "it missed, so FP32 serves.")


def test_accuracies_on_labels_are_in_the_summary() -> None:
    interval = IntervalReport(low=0.9, high=1.0)
    task = TaskReport(output="scores", rows=64, fp32_top1=0.99, fp32_interval=interval, quantized_top1=0.98)
    summary = report(task=task).summary()
    assert (summary["fp32_top1"], summary["quantized_top1"]) == (0.99, 0.98)
    assert report().summary()["fp32_top1"] is None


def test_speedup_is_that_of_the_largest_batch() -> None:
    assert report().speedup == 3.0
    assert report(latencies=()).speedup is None
    assert report(latencies=(LatencyReport(rows=1, fp32_ms=1.0, quantized_ms=None),)).speedup is None


def test_an_emulated_engine_is_called_so_and_has_no_speedup() -> None:
    emulated = report(requested=Precision.FP8, serving=Precision.FP8, emulated=True)
    assert emulated.speedup is None
    summary = emulated.summary()
    assert (summary["precision"], summary["emulated"], summary["speedup"]) == ("fp8", True, None)
    assert summary["sqnr_db"] == 35.0, "of the emulated engine, which serves"
    assert report().summary()["emulated"] is False
    refused = report(requested=Precision.FP8, serving=Precision.FP32, emulated=True)
    assert refused.summary()["emulated"] is False, "FP32 serves, and that is no emulation"


def test_throughput_is_written_beside_latency_and_computed_again_when_read(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_bytes())
    last = content["latencies"][-1]
    assert (last["fp32_rows_per_s"], last["quantized_rows_per_s"]) == (1066.7, 3200.0)
    last["fp32_rows_per_s"] = 1e9
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert Report.load(tmp_path / "report.json") == report()
    assert LatencyReport(rows=1, fp32_ms=2.0, quantized_ms=None).quantized_rows_per_s is None


def test_an_8_bit_engine_that_is_slower_is_called_so() -> None:
    slower = LatencyReport(rows=1, fp32_ms=1.0, quantized_ms=1.2)
    faster = LatencyReport(rows=32, fp32_ms=30.0, quantized_ms=10.0)
    alike = LatencyReport(rows=8, fp32_ms=8.0, quantized_ms=8.2)
    alone = LatencyReport(rows=1, fp32_ms=1.0, quantized_ms=None)
    assert speed_warnings((faster, alike, alone), emulated=False) == ()
    (words,) = speed_warnings((slower, faster, alike), emulated=False)
    assert "slower than FP32 on this machine: 1.2 ms against 1 ms for batches of 1." in words
    assert "Build with precision fp32" in words
    (long,) = speed_warnings((LatencyReport(rows=9, fp32_ms=1000.4, quantized_ms=1234.6),), emulated=False)
    assert "1235 ms against 1000 ms" in long
    (words,) = speed_warnings((slower, faster, alike), emulated=True)
    assert "It is emulated here" in words
    assert report(warnings=(words,)).summary()["warnings"] == [words]


@pytest.mark.parametrize(
    ("verify_rows", "proof_rows", "disjoint", "words"),
    [
        (64, 64, True, None),
        (32, 32, True, None),
        (31, 31, True, "the proof has 31 rows, fewer than 32; upload more samples"),
        (
            3,
            3,
            False,
            "too few to keep some aside, so the proof uses rows that calibrated and the proof has 3",
        ),
        # Rows that do not fit into the proof: more samples would not help.
        (64, 2, True, "the proof has 2 rows, fewer than 32"),
    ],
)
def test_weak_evidence_is_called_weak(
    verify_rows: int, proof_rows: int, disjoint: bool, words: str | None
) -> None:
    found = weak_evidence(verify_rows=verify_rows, proof_rows=proof_rows, disjoint=disjoint)
    if words is None:
        assert found is None
    else:
        assert words in str(found)
    if proof_rows < verify_rows:
        assert "upload" not in str(found)


def test_an_engine_that_did_not_run_has_no_outputs_to_report() -> None:
    assert output_reports(None) == ()


def test_versions_name_what_figures_depend_on() -> None:
    assert set(versions()) == {"octet", "openvino", "onnxruntime", "onnx", "numpy"}
    assert all(versions().values())


def test_clauses_are_reported_with_what_was_asked_and_measured() -> None:
    kept = Clause(output="scores", measure="sqnr_db", value=25.0, limit=20.0, lower=23.5, rows=64)
    missed = Clause(output="scores", measure="top1_weighted", value=0.98, limit=0.99, lower=0.92, rows=64)
    first, second = clause_reports((kept, missed))
    assert (first.measure, first.value, first.limit, first.lower) == ("sqnr_db", 25.0, 20.0, 23.5)
    assert (first.holds, first.margin_db) == (True, 5.0)
    assert not second.holds
    # 0.02 is lacking where 0.01 may.
    assert second.margin_db == pytest.approx(-3.01, abs=0.001)


def test_doubts_of_the_contract_make_evidence_weak() -> None:
    weak = weak_evidence(
        verify_rows=64, proof_rows=64, disjoint=True, doubts=("output 'a' is zero", "b is near")
    )
    assert weak == "output 'a' is zero and b is near; upload more samples"
