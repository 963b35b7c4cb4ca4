"""Histograms for the report: the tensors that lose most, in few bins that still count every value."""

import json
from pathlib import Path

import numpy as np
import pytest

from engines.calibration.error import noise_to_signal
from engines.calibration.histogram import BINS, Histogram
from engines.options import Precision
from engines.reports.worst_tensors import DRAWN_BINS, WORST, coarse, read_histograms, worst_histograms
from engines.workspace import CALIBRATION, HISTOGRAMS, Workspace


def histogram(*, seed: int = 0, spread: float = 1.0, size: int = 5000) -> Histogram:
    values = np.random.default_rng(seed).normal(0.0, spread, size)
    return Histogram.of(np.maximum(values, 0).astype(np.float32))


def test_the_worst_come_first_and_no_more_than_are_drawn() -> None:
    histograms = {f"t{number}": histogram(seed=number) for number in range(WORST + 3)}
    # The lower a threshold, the more it clips.
    thresholds = {f"t{number}": 0.1 * (number + 1) for number in range(WORST + 3)}
    found = worst_histograms(histograms, thresholds, Precision.INT8)
    assert [report.tensor for report in found] == [f"t{number}" for number in range(WORST)]
    first = found[0]
    noise = noise_to_signal(histograms["t0"], thresholds["t0"])
    assert first.sqnr_db == pytest.approx(-10 * np.log10(noise), abs=0.01)
    assert (first.threshold, first.absmax) == (thresholds["t0"], histograms["t0"].absmax)
    assert first.zeros == histograms["t0"].zeros > 0


def test_the_noise_is_that_of_the_format() -> None:
    # INT8 rounds normal values 9 dB better than E4M3 does.
    given = {"t": histogram()}, {"t": histogram().absmax}
    (int8,), (fp8,) = (worst_histograms(*given, precision) for precision in (Precision.INT8, Precision.FP8))
    assert 30 < fp8.sqnr_db < 33
    assert int8.sqnr_db > fp8.sqnr_db + 5


def test_tensors_of_zeros_and_tensors_without_a_threshold_are_not_shown() -> None:
    histograms = {"zeros": Histogram.of(np.zeros(9, np.float32)), "unused": histogram(), "used": histogram()}
    found = worst_histograms(histograms, {"zeros": 0.0, "used": 1.0}, Precision.INT8)
    assert [report.tensor for report in found] == ["used"]


@pytest.mark.parametrize("largest", [1.0, 1.01, 1.5, 1.999, 3e-5, 7e30])
def test_coarse_bins_reach_to_the_largest_value_and_lose_none(largest: float) -> None:
    values = np.append(np.linspace(0.0, largest, 1000), largest).astype(np.float32)
    counted = Histogram.of(values)
    counts, width = coarse(counted)
    assert DRAWN_BINS // 2 < len(counts) <= DRAWN_BINS
    assert sum(counts) == counted.total - counted.zeros
    assert counts[-1] > 0
    assert width * (len(counts) - 1) <= np.float32(largest) <= width * len(counts)


def test_coarse_of_nothing_is_one_empty_bin() -> None:
    assert coarse(Histogram.empty())[0] == (0,)
    assert Histogram.empty().counts.size == BINS


def test_histograms_are_read_back_by_the_names_of_the_table(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert read_histograms(workspace) == {}
    stored = {"b": histogram(seed=1), "a": histogram(seed=2)}
    workspace.path(CALIBRATION).write_text(json.dumps({"tensors": {name: {} for name in stored}}))
    arrays = {
        f"{number}.{field}": array
        for number, each in enumerate(stored.values())
        for field, array in each.to_arrays().items()
    }
    np.savez(workspace.path(HISTOGRAMS), allow_pickle=False, **arrays)
    found = read_histograms(workspace)
    assert list(found) == ["b", "a"]
    assert all(np.array_equal(found[name].counts, stored[name].counts) for name in stored)
    assert [found[name].absmax for name in stored] == [stored[name].absmax for name in stored]
