import pytest

from service.serving.failures import Failures

KEY = ("m", 1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def waits_for(failures: Failures, clock: Clock) -> float:
    """How long from now the version is not tried."""
    start_s = clock.now_s
    while failures.waits(KEY):
        clock.now_s += 1
    return clock.now_s - start_s


def test_waits_longer_after_each_failure_up_to_ten_minutes(clock: Clock) -> None:
    failures = Failures(retry_s=30, clock=clock)
    waits = []
    for _ in range(7):
        failures.note(KEY)
        waits.append(waits_for(failures, clock))
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_one_that_did_well_for_long_starts_anew(clock: Clock) -> None:
    failures = Failures(retry_s=30, clock=clock)
    failures.note(KEY)
    failures.note(KEY)
    assert waits_for(failures, clock) == 60
    clock.now_s += 599
    failures.note(KEY)
    assert waits_for(failures, clock) == 120
    clock.now_s += 600
    failures.note(KEY)
    assert waits_for(failures, clock) == 30


def test_others_do_not_wait_and_what_is_forgotten_neither(clock: Clock) -> None:
    failures = Failures(retry_s=30, clock=clock)
    failures.note(KEY)
    assert not failures.waits(("m", 2))
    failures.retain({KEY})
    assert failures.waits(KEY)
    failures.retain({("m", 2)})
    assert not failures.waits(KEY)
    failures.note(KEY)
    failures.forget(KEY)
    assert not failures.waits(KEY)
    failures.note(KEY)
    assert waits_for(failures, clock) == 30
