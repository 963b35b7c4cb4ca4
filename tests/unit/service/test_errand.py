from dataclasses import dataclass

from service.builds.errand import LAST_LOOK_S, Errand

IDLE_S = 60.0


@dataclass
class Stage:
    """The queue of a worker, and the time there."""

    now_s: float = 1000.0
    begun: bool = False
    idle: bool = True
    listening: bool = True

    def stop_listening(self) -> None:
        self.listening = False

    def clock(self) -> float:
        return self.now_s

    def errand(self) -> Errand:
        return Errand(self, idle_s=IDLE_S, clock=self.clock)

    def begin(self) -> None:
        self.begun, self.idle = True, False


def done_after(stage: Stage, errand: Errand, seconds: float) -> bool:
    """Whether it is done once `seconds` have gone by since it was asked last."""
    stage.now_s += seconds
    return errand.done()


def test_it_waits_for_a_build_as_long_as_it_was_told_to_and_listens() -> None:
    stage = Stage()
    errand = stage.errand()
    assert not errand.done()
    assert not done_after(stage, errand, IDLE_S - 0.1)
    assert stage.listening


def test_where_no_build_comes_it_stops_listening_looks_once_more_and_is_done() -> None:
    stage = Stage()
    errand = stage.errand()
    assert not done_after(stage, errand, IDLE_S)
    assert not stage.listening
    assert not done_after(stage, errand, LAST_LOOK_S - 0.1)
    assert done_after(stage, errand, 0.1)


def test_a_build_takes_as_long_as_it_takes_and_is_the_last() -> None:
    stage = Stage()
    errand = stage.errand()
    stage.begin()
    assert not done_after(stage, errand, 100 * IDLE_S)
    stage.idle = True
    assert not errand.done()
    assert not stage.listening
    assert done_after(stage, errand, LAST_LOOK_S)


def test_after_a_short_build_nobody_waits_for_another() -> None:
    stage = Stage()
    errand = stage.errand()
    stage.begin()
    assert not done_after(stage, errand, 1.0)
    stage.idle = True
    assert not errand.done()
    assert done_after(stage, errand, LAST_LOOK_S)


def test_a_build_that_came_in_the_last_instant_is_carried_out() -> None:
    stage = Stage()
    errand = stage.errand()
    assert not done_after(stage, errand, IDLE_S)
    stage.begin()
    assert not done_after(stage, errand, LAST_LOOK_S)
    assert not done_after(stage, errand, 100 * IDLE_S)
    stage.idle = True
    assert not errand.done(), "its end may not be noted yet"
    assert done_after(stage, errand, LAST_LOOK_S)


def test_what_was_given_and_is_another_workers_counts_as_no_build() -> None:
    stage = Stage()
    errand = stage.errand()
    stage.idle = False
    assert not errand.done()
    stage.idle = True
    assert not done_after(stage, errand, IDLE_S - 0.1)
    assert stage.listening


def test_a_build_that_is_claimed_only_after_the_waiting_time_is_waited_for() -> None:
    stage = Stage(idle=False)
    errand = stage.errand()
    assert not done_after(stage, errand, IDLE_S)
    assert stage.listening, "it may turn out to be another worker's"
