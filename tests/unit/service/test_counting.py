from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.monitoring.counting import LATENCY_BOUNDS_S, Count, Distribution, percentile


def test_a_count_grows() -> None:
    count = Count()
    count.inc()
    count.inc(4)
    assert count.value == 5


def test_a_value_on_a_bound_is_below_it_and_one_above_all_is_kept() -> None:
    seen = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5):
        seen.observe(value)
    assert seen.counts == [2, 1, 1]
    assert (seen.count, seen.sum) == (4, 5.5)


def test_latency_bounds_rise_by_an_eighth_at_most() -> None:
    assert all(low < high <= low * 1.126 for low, high in pairwise(LATENCY_BOUNDS_S))
    assert (LATENCY_BOUNDS_S[0], LATENCY_BOUNDS_S[-1]) == (1e-5, 100.0)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile((1.0, 2.0), (0, 0, 0), 0.5) is None


def test_values_above_all_bounds_are_said_to_be_at_the_last() -> None:
    assert percentile((1.0, 2.0), (0, 0, 3), 0.5) == 2.0


@given(
    st.lists(st.floats(1e-5, 90.0), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_percentiles_are_off_by_an_eighth_at_most(values: list[float], share: float) -> None:
    seen = Distribution(LATENCY_BOUNDS_S)
    for value in values:
        seen.observe(value)
    found = percentile(seen.bounds, seen.counts, share)
    rank = max(1, -(-share * len(values) // 1))
    exact = sorted(values)[int(rank) - 1]
    assert found == pytest.approx(exact, rel=0.126, abs=1e-5)
