"""Bounds against tables, and how often they cover the truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.fidelity.confidence import (
    mean_lower,
    paired_difference,
    ratio_db_slack,
    student,
    wilson_interval,
    wilson_lower,
)

TRIALS = 2000


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 6.314), (2, 2.920), (3, 2.353), (7, 1.895), (31, 1.696), (1000, 1.646)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=0.003)


@pytest.mark.parametrize("rows", [16, 64, 400])
@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_the_bound_of_a_ratio_covers_about_19_times_in_20(rows: int, spread: float) -> None:
    random = np.random.default_rng(rows)
    truth_db = 10 * np.log10(100 / np.exp(spread**2 / 2))
    covered = 0
    for _ in range(TRIALS):
        signal = 100 * random.gamma(5.0, 0.2, rows)
        noise = np.exp(spread * random.normal(size=rows))
        slack_db = ratio_db_slack(signal, noise)
        assert slack_db is not None
        covered += 10 * np.log10(signal.sum() / noise.sum()) - slack_db <= truth_db
    assert 0.905 <= covered / TRIALS <= 0.985


def test_the_slack_of_a_ratio_is_that_of_the_formula() -> None:
    """Deviations of -1/2, 0 and 1/2 from the ratio: sqrt((1/4 + 1/4) / (3 * 2)), times t of 2 degrees of freedom."""
    slack_db = ratio_db_slack(np.ones(3), np.array([1.0, 2.0, 3.0]))
    assert slack_db == pytest.approx(10 * np.log10(np.e) * 2.92 * np.sqrt(0.5 / 6), rel=1e-6)


def test_rows_of_one_ratio_leave_no_doubt() -> None:
    signal = np.array([1.0, 2.0, 3.0])
    assert ratio_db_slack(signal, 0.01 * signal) == pytest.approx(0.0, abs=1e-12)
    assert ratio_db_slack(signal, 0.01 * signal[::-1]) > 1  # type: ignore[operator] # it is a number here


@pytest.mark.parametrize(
    ("signal", "noise"), [([1.0], [1.0]), ([1.0, 1.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 1.0]), ([], [])]
)
def test_a_ratio_without_two_rows_and_two_energies_has_no_bound(
    signal: list[float], noise: list[float]
) -> None:
    assert ratio_db_slack(np.array(signal), np.array(noise)) is None


@pytest.mark.parametrize("rows", [8, 200])
def test_the_bound_of_a_mean_covers_19_times_in_20(rows: int) -> None:
    random = np.random.default_rng(rows)
    covered = sum(float(mean_lower(random.normal(3.0, 2.0, rows)) or 9.0) <= 3.0 for _ in range(TRIALS))
    assert 0.93 <= covered / TRIALS <= 0.97
    assert mean_lower(np.ones(1)) is None


@pytest.mark.parametrize(("share", "rows"), [(0.95, 40), (0.9, 200), (0.99, 64)])
def test_the_bound_of_a_share_covers_about_19_times_in_20(share: float, rows: int) -> None:
    seen = np.random.default_rng(7).binomial(rows, share, TRIALS) / rows
    covered = sum(wilson_lower(float(one), rows) <= share for one in seen)
    assert covered / TRIALS >= 0.90


def test_wilsons_bounds_are_those_worked_out_by_hand() -> None:
    # 1 / (1 + z^2 / n), of a share of 1.
    assert wilson_lower(1.0, 32) == pytest.approx(1 / (1 + 1.6449**2 / 32), abs=1e-4)
    assert wilson_lower(1.0, 267) < 0.99 < wilson_lower(1.0, 270)
    interval = wilson_interval(0.5, 100)
    assert interval.low == pytest.approx(0.4038, abs=1e-4)
    assert interval.high == pytest.approx(0.5962, abs=1e-4)
    assert (wilson_lower(0.0, 0), wilson_interval(0.0, 0).high) == (0.0, 1.0)


def one_paired(random: np.random.Generator, rows: int) -> tuple[int, int]:
    kinds: NDArray[np.int64] = random.multinomial(rows, [0.03, 0.06, 0.91])
    return int(kinds[0]), int(kinds[1])


@pytest.mark.parametrize("rows", [60, 400])
def test_the_interval_of_a_paired_difference_covers_19_times_in_20(rows: int) -> None:
    random = np.random.default_rng(rows)
    covered = 0
    for _ in range(TRIALS):
        interval = paired_difference(*one_paired(random, rows), rows)
        covered += interval.low <= 0.03 - 0.06 <= interval.high
    assert 0.93 <= covered / TRIALS <= 0.99


def test_a_paired_difference_has_the_sign_of_what_was_gained() -> None:
    assert paired_difference(0, 50, 100).high < 0 < paired_difference(50, 0, 100).low
    same = paired_difference(0, 0, 10)
    assert -1 < same.low < 0 < same.high < 1
    assert (paired_difference(0, 0, 0).low, paired_difference(0, 0, 0).high) == (-1.0, 1.0)
