import pytest

from service.monitoring.counting import LATENCY_BOUNDS_S, Count, Distribution
from service.monitoring.recent import Recent


class Version:
    def __init__(self) -> None:
        self.requests, self.rows = Distribution(LATENCY_BOUNDS_S), Count()
        self.recent = Recent(self.requests, self.rows)

    def answer(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.requests.observe(seconds)
            self.rows.inc(3)


def test_before_the_first_sample_there_is_nothing() -> None:
    rates = Version().recent.rates(5.0)
    assert (rates.window_s, rates.requests_per_s, rates.rows_per_s, rates.p50_ms) == (0, 0, 0, None)


def test_rates_are_those_of_the_window() -> None:
    version = Version()
    for second in range(100, 120):
        version.recent.sample(second)
        version.answer(50, 0.002)
    version.answer(10, 0.3)
    rates = version.recent.rates(119.5)
    assert rates.window_s == 10.5
    assert rates.requests_per_s == pytest.approx((11 * 50 + 10) / 10.5)
    assert rates.rows_per_s == pytest.approx(3 * rates.requests_per_s)
    assert rates.p50_ms == pytest.approx(2, rel=0.125)
    assert rates.p99_ms == pytest.approx(300, rel=0.125)


def test_what_was_before_the_window_is_forgotten() -> None:
    version = Version()
    version.recent.sample(0)
    version.answer(1000, 5.0)
    for second in range(1, 30):
        version.recent.sample(second)
    rates = version.recent.rates(29.0)
    assert (rates.requests_per_s, rates.p99_ms) == (0, None)
    assert len(version.recent._samples) < 15


def test_a_young_version_is_shown_since_its_first_sample() -> None:
    version = Version()
    version.recent.sample(10)
    version.answer(4, 0.001)
    assert version.recent.rates(12.0).requests_per_s == 2
