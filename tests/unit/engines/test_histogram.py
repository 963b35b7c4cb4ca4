import random
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from engines.calibration.histogram import BINS, Histogram
from engines.errors import CalibrationError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, st.integers(0, 50), elements=FINITE)


def same(first: Histogram, second: Histogram) -> bool:
    """Bit for bit: 0.0 and -0.0 differ."""
    ours, theirs = first.to_arrays(), second.to_arrays()
    return all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


def literal(values: NDArray[np.float32], exponent: int) -> NDArray[np.int64]:
    """The definition: |x| falls into bin floor(|x| / width), in exact arithmetic."""
    counts = np.zeros(BINS, np.int64)
    for value in np.abs(values.astype(np.float64)):
        if value:
            counts[int(value / (2.0**exponent / BINS))] += 1
    return counts


@settings(deadline=None)
@given(VALUES)
def test_counts_are_those_of_the_definition(values: NDArray[np.float32]) -> None:
    histogram = Histogram.of(values)
    assert np.array_equal(histogram.counts, literal(values, histogram.exponent))
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.total == values.size


@settings(deadline=None)
@given(VALUES, st.lists(st.integers(0, 50), max_size=5), st.randoms(use_true_random=False))
def test_any_cut_merged_in_any_order_gives_the_same_bits(
    values: NDArray[np.float32], cuts: list[int], order: random.Random
) -> None:
    shards = [Histogram.of(part) for part in np.split(values, sorted(cuts))]
    order.shuffle(shards)
    merged = Histogram.empty()
    for shard in shards:
        merged = shard.merge(merged)
    assert same(merged, Histogram.of(values))


@settings(deadline=None)
@given(VALUES, VALUES, VALUES)
def test_merge_is_associative(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> None:
    one, two, three = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))


def test_range_is_the_smallest_power_of_two_that_covers_the_largest_magnitude() -> None:
    assert Histogram.of(np.array([0.99, -3.9], np.float32)).exponent == 2
    assert Histogram.of(np.array([4.0], np.float32)).exponent == 3


@settings(deadline=None)
@given(VALUES)
def test_extremes_are_those_of_the_values(values: NDArray[np.float32]) -> None:
    histogram = Histogram.of(values)
    assert histogram.minimum == min(values, default=0)
    assert histogram.maximum == max(values, default=0)


def test_range_grows_in_the_middle_of_an_array_as_if_it_had_been_wide_from_the_start() -> None:
    generator = np.random.default_rng(2)
    values = (generator.normal(size=60_000) * np.logspace(-30, 30, 60_000)).astype(np.float32)
    growing = Histogram.of(values)
    assert same(growing, Histogram.of(values[::-1]))
    assert np.array_equal(growing.counts, literal(values, growing.exponent))


@pytest.mark.parametrize("tiny", [1e-45, 1.2e-38, 2.0**-101])
def test_values_below_the_smallest_range_are_counted_and_their_extremes_kept(tiny: float) -> None:
    histogram = Histogram.of(np.array([tiny, -tiny, 0], np.float32))
    assert (histogram.counts.sum(), histogram.zeros) == (2, 1)
    assert histogram.absmax == np.float32(tiny)


def test_largest_float_is_counted() -> None:
    largest = np.finfo(np.float32).max
    assert Histogram.of(np.array([largest], np.float32)).counts[BINS - 1] == 1


def test_read_only_and_strided_arrays_are_taken() -> None:
    values = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    expected = Histogram.of(np.ascontiguousarray(values[::2, ::3]))
    values.flags.writeable = False
    assert same(Histogram.of(values[::2, ::3]), expected)
    assert Histogram.of(values).total == 2400


def test_bfloat16_is_taken() -> None:
    values = np.array([0.5, -3.0, 0], ml_dtypes.bfloat16)
    assert same(Histogram.of(values), Histogram.of(np.array([0.5, -3.0, 0], np.float32)))


def test_pieces_of_a_large_array_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    whole = Histogram.of(values)
    monkeypatch.setattr("engines.calibration.histogram._CHUNK", 999)
    assert same(Histogram.of(values), whole)


def test_importing_calibration_does_not_import_numba() -> None:
    code = (
        "import sys, engines.calibration.thresholds, engines.calibration.histogram;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_large_arrays_are_counted_whole_whatever_their_length() -> None:
    values = np.random.default_rng(0).normal(size=100_003).astype(np.float32)
    for size in range(99_996, 100_003):
        assert Histogram.of(values[:size]).counts.sum() == size


def test_shapes_and_types_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float16)
    assert same(Histogram.of(values), Histogram.of(np.asfortranarray(values).astype(np.float64)))


def test_extremes_are_exact_and_signed() -> None:
    histogram = Histogram.of(np.array([-0.7, 0.3], np.float32))
    assert (histogram.minimum, histogram.maximum) == (float(np.float32(-0.7)), float(np.float32(0.3)))
    assert histogram.absmax == np.float32(0.7)


def test_negative_zero_does_not_show_in_the_extremes() -> None:
    zeros = [Histogram.of(np.array([value], np.float32)) for value in (0.0, -0.0)]
    assert same(zeros[0].merge(zeros[1]), zeros[1].merge(zeros[0]))
    assert same(*zeros)


def test_negative_zero_is_a_zero() -> None:
    assert Histogram.of(np.array([-0.0, 0.0], np.float32)).zeros == 2


def test_arguments_of_merge_keep_their_counts() -> None:
    small, large = Histogram.of(np.ones(3, np.float32)), Histogram.of(np.full(3, 1e6, np.float32))
    before = small.counts.copy()
    small.merge(large)
    assert np.array_equal(small.counts, before)


def test_round_trip_through_arrays() -> None:
    histogram = Histogram.of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert same(Histogram.from_arrays(histogram.to_arrays()), histogram)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 9_999])
def test_values_that_are_not_finite_are_refused_and_counted(
    bad: float, dtype: type[np.floating], place: int
) -> None:
    values = np.ones(10_000, dtype)
    values[place] = bad
    with pytest.raises(CalibrationError, match="1 of 10000 values are NaN or infinite"):
        Histogram.of(values)


def test_values_beyond_float32_are_refused_as_infinite() -> None:
    with pytest.raises(CalibrationError, match="1 of 2 values are NaN or infinite"):
        Histogram.of(np.array([1.0, 1e300]))
