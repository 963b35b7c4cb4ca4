import logging
import os
import time
from types import SimpleNamespace

import pytest

from service.worker import Chore, Duty, take_unclaimed


def test_a_chore_that_fails_is_noted_and_done_again_but_not_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker._AFTER_FAILURE_S", 0.1)
    done: list[float] = []

    def work() -> None:
        done.append(time.monotonic())
        if len(done) == 1:
            raise OSError("the disk is away")

    chore = Chore(work, every_s=0.0)
    with caplog.at_level(logging.ERROR):
        chore.run_if_due()
    assert "a chore of the worker failed; it is tried again in 0.1 s" in caplog.text
    chore.run_if_due()
    assert len(done) == 1
    time.sleep(0.11)
    chore.run_if_due()
    chore.run_if_due()
    assert len(done) == 3


def test_a_chore_waits_until_it_is_due() -> None:
    done: list[int] = []
    chore = Chore(lambda: done.append(1), every_s=3600.0)
    chore.run_if_due()
    chore.run_if_due()
    assert done == [1]


def test_a_worker_that_came_for_one_build_does_not_end_well_before_it_is_done() -> None:
    assert Duty(once_s=0.0).cut_short == os.EX_TEMPFAIL
    assert Duty().cut_short == 0


@pytest.mark.parametrize(("steady", "taken"), [(True, ["build b"]), (False, [])])
def test_builds_are_taken_from_nobody_while_others_could_not_beat(
    caplog: pytest.LogCaptureFixture, steady: bool, taken: list[str]
) -> None:
    queue, heartbeat = SimpleNamespace(take_back=lambda: ["b"]), SimpleNamespace(steady=steady)
    take_unclaimed(queue, heartbeat)  # type: ignore[arg-type] # what it asks of them
    assert [message.partition(" goes")[0] for message in caplog.messages] == taken
