"""Builds whose contract all layers in 8 bits do not keep."""

from pathlib import Path

import pytest

from engines.building import quantize
from engines.errors import ContractMissedError
from engines.loading import load_engine
from engines.options import BuildOptions, Precision
from engines.quantization.placement import LEFT_FLOATING
from engines.reports.report import Report, Verdict
from engines.workspace import QUANTIZED

ROOT = Path(__file__).parents[3]
DEPTHWISE = ROOT / "loadtests" / "models" / "depthwise.onnx"
SAMPLES = ROOT / "examples" / "digits" / "samples.npz"
BEYOND_DB = 44.0
"""What depthwise digits reach with some layers floating, and not with all in 8 bits (41 dB with 8-bit weights)."""


def build(folder: Path, **options: object) -> Report:
    asked = {"batching": {"max_batch_rows": 4}, "effort": "fast", **options}
    return quantize(DEPTHWISE, [SAMPLES], folder, BuildOptions.parse(asked), threads=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("mixed")
    return folder, build(folder, contract={"metric": "sqnr_db", "min": BEYOND_DB})


class TestMixed:
    def test_keeps_the_contract_with_some_layers_floating(self, mixed: tuple[Path, Report]) -> None:
        report = mixed[1]
        assert (report.verdict, report.serving) == (Verdict.ACCEPTED, Precision.INT8)
        assert report.quantized is not None
        assert report.quantized.value is not None
        assert report.quantized.value >= BEYOND_DB
        left = {layer.node for layer in report.layers.skipped if layer.reason == LEFT_FLOATING}
        assert left
        assert report.layers.quantized
        assert not left & set(report.layers.quantized)

    def test_says_what_was_left_and_everything_that_was_measured(self, mixed: tuple[Path, Report]) -> None:
        assert mixed[1].choices is not None
        search = mixed[1].choices.mixed
        assert search is not None
        assert search.meets
        assert search.evaluations == len(search.points) <= search.budget
        [chosen] = [point for point in search.points if point.chosen]
        assert chosen.floating == search.left_floating
        assert chosen.margin_db is not None
        assert chosen.assured_db is not None
        assert chosen.margin_db - chosen.assured_db >= 0.5
        assert chosen.assured_db >= 0
        # Nothing that was measured keeps the contract, and what other rows may need, with fewer layers floating.
        keeping = [p for p in search.points if p.assured_db is not None and p.assured_db >= 0]
        assert min(len(point.floating) for point in keeping) == len(chosen.floating)
        assert search.points[0].floating == ()
        assert search.points[0].margin_db is not None
        assert search.points[0].margin_db < 0.5
        assert search.points[0].size_bytes < chosen.size_bytes
        assert all(point.batch_ms is not None for point in search.points)

    def test_thresholds_are_those_of_what_is_quantized(self, mixed: tuple[Path, Report]) -> None:
        folder, report = mixed
        used = len(report.thresholds)
        assert search_groups(report) > used
        with load_engine(folder, BuildOptions(), threads=1).engine:
            pass
        assert (folder / QUANTIZED).stat().st_size > 0


def search_groups(report: Report) -> int:
    if report.choices is None or report.choices.mixed is None:
        raise AssertionError("the contract was kept without a search")
    return report.choices.mixed.groups


def test_a_contract_that_nothing_in_8_bits_keeps_has_fp32_serve(tmp_path: Path) -> None:
    report = build(tmp_path, contract={"metric": "sqnr_db", "min": 150})
    assert (report.verdict, report.serving) == (Verdict.REFUSED, Precision.FP32)
    assert report.choices is not None
    assert report.choices.mixed is not None
    assert not report.choices.mixed.meets
    assert report.choices.mixed.left_floating == ()


def test_on_miss_fail_fails_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(
        ContractMissedError, match=r"SQNR \d\d\.\d dB over 64 rows, .* asks for 44, and on_miss"
    ):
        build(tmp_path, contract={"metric": "sqnr_db", "min": BEYOND_DB}, on_miss="fail")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("published")
    return folder, build(folder, contract={"metric": "sqnr_db", "min": 150}, on_miss="publish")


class TestPublishedBelowContract:
    def test_serves_in_8_bits_and_says_so(self, published: tuple[Path, Report]) -> None:
        report = published[1]
        assert (report.verdict, report.serving) == (Verdict.BELOW_CONTRACT, Precision.INT8)
        assert "asks for 150; it serves all the same" in str(report.reason)
        assert report.quantized is not None
        assert not report.quantized.holds

    def test_is_loaded_in_8_bits(self, published: tuple[Path, Report]) -> None:
        options = BuildOptions.parse({"contract": {"metric": "sqnr_db", "min": 150}, "on_miss": "publish"})
        loaded = load_engine(published[0], options, threads=1)
        loaded.engine.close()
        assert (loaded.precision, loaded.refusal) == (Precision.INT8, None)
