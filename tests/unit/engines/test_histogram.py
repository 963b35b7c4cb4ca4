import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engines.calibration.histogram import BINS, Histogram
from engines.errors import CalibrationError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, st.integers(0, 50), elements=FINITE)


def same(first: Histogram, second: Histogram) -> bool:
    return all(np.array_equal(first.to_arrays()[key], second.to_arrays()[key]) for key in first.to_arrays())


def literal(values, exponent):
    """The definition: |x| falls into bin floor(|x| / width), in exact arithmetic."""
    counts = np.zeros(BINS, np.int64)
    for value in np.abs(values.astype(np.float64)):
        if value:
            counts[int(value / (2.0**exponent / BINS))] += 1
    return counts


@settings(deadline=None)
@given(VALUES)
def test_counts_are_those_of_the_definition(values):
    histogram = Histogram.of(values)
    assert np.array_equal(histogram.counts, literal(values, histogram.exponent))
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.total == values.size


@settings(deadline=None)
@given(VALUES, st.lists(st.integers(0, 50), max_size=5), st.randoms(use_true_random=False))
def test_any_cut_merged_in_any_order_gives_the_same_bits(values, cuts, random):
    shards = [Histogram.of(part) for part in np.split(values, sorted(cuts))]
    random.shuffle(shards)
    merged = Histogram.empty()
    for shard in shards:
        merged = shard.merge(merged)
    assert same(merged, Histogram.of(values))


@settings(deadline=None)
@given(VALUES, VALUES, VALUES)
def test_merge_is_associative(a, b, c):
    a, b, c = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_range_is_the_smallest_power_of_two_that_covers_the_largest_magnitude():
    assert Histogram.of(np.array([0.99, -3.9], np.float32)).exponent == 2
    assert Histogram.of(np.array([4.0], np.float32)).exponent == 3


def test_large_arrays_are_counted_whole_whatever_their_length():
    values = np.random.default_rng(0).normal(size=100_003).astype(np.float32)
    for size in range(99_996, 100_003):
        assert Histogram.of(values[:size]).counts.sum() == size


def test_shapes_and_types_do_not_matter():
    values = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float16)
    assert same(Histogram.of(values), Histogram.of(np.asfortranarray(values).astype(np.float64)))


def test_extremes_are_exact_and_signed():
    histogram = Histogram.of(np.array([-0.7, 0.3], np.float32))
    assert (histogram.minimum, histogram.maximum) == (np.float32(-0.7), np.float32(0.3))
    assert histogram.absmax == np.float32(0.7)


def test_negative_zero_is_a_zero():
    assert Histogram.of(np.array([-0.0, 0.0], np.float32)).zeros == 2


def test_arguments_of_merge_keep_their_counts():
    small, large = Histogram.of(np.ones(3, np.float32)), Histogram.of(np.full(3, 1e6, np.float32))
    before = small.counts.copy()
    small.merge(large)
    assert np.array_equal(small.counts, before)


def test_round_trip_through_arrays():
    histogram = Histogram.of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert same(Histogram.from_arrays(histogram.to_arrays()), histogram)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_counted(bad):
    with pytest.raises(CalibrationError, match="1 of 3 values are NaN or infinite"):
        Histogram.of(np.array([1, bad, 2], np.float32))
