import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.token_bucket import TokenBucket


def test_a_seconds_worth_passes_at_once_and_then_one_after_the_other() -> None:
    bucket = TokenBucket(4.0, now_s=0.0)
    assert [bucket.take(0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.25]
    assert bucket.take(0.2) == pytest.approx(0.05)
    assert bucket.take(0.26) == 0.0
    assert bucket.take(0.27) > 0.0


def test_what_is_not_used_does_not_pile_up() -> None:
    bucket = TokenBucket(2.0, now_s=0.0)
    assert [bucket.take(1000.0) > 0 for _ in range(3)] == [False, False, True]


def test_less_than_one_a_second_passes_too() -> None:
    bucket = TokenBucket(0.1, now_s=0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(1.0) == pytest.approx(9.0)
    assert bucket.take(10.1) == 0.0


@given(
    per_s=st.floats(0.01, 1000.0),
    pauses_s=st.lists(st.floats(0.0, 5.0), max_size=200),
)
def test_never_more_pass_than_the_rate_allows_and_whoever_waits_as_told_passes(
    per_s: float, pauses_s: list[float]
) -> None:
    bucket, now_s, passed = TokenBucket(per_s, now_s=0.0), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        wait_s = bucket.take(now_s)
        if wait_s:
            # Rounding may cost a hair.
            now_s += wait_s * (1 + 1e-9) + 1e-9
            assert bucket.take(now_s) == 0.0
        passed += 1
    assert passed <= max(1.0, per_s) + per_s * now_s + 1e-6
