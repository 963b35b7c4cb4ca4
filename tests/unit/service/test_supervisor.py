import json
import logging
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.options import Batching
from service.errors import StartError
from service.processes import supervisor
from service.processes.supervisor import Role, blame, one_build_worker, work
from service.server import ENDING_S
from service.serving.flight import FlightRecorder, Subject
from service.serving.quarantine import CrashLog
from service.settings import Settings

A = Subject(model="a", number=1, build_id="a" * 32)
B = Subject(model="b", number=3, build_id="b" * 32)


def test_what_was_running_is_blamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=tmp_path)
    recorder = FlightRecorder(settings.flight_file)
    recorder.entry(A)
    with caplog.at_level(logging.ERROR):
        recorder.entry(B).run(lambda: blame(settings, "SIGSEGV"))
    assert caplog.messages == ["the server died of SIGSEGV; suspected: version 3 of b"]
    assert CrashLog(settings.crash_file).suspects == {B.build_id}
    (crash,) = json.loads(settings.crash_file.read_text())
    assert crash["cause"] == "SIGSEGV"


def test_nobody_is_blamed_where_nothing_was_running(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=tmp_path)
    FlightRecorder(settings.flight_file).entry(A).run(lambda: None)
    with caplog.at_level(logging.ERROR):
        blame(settings, "SIGABRT")
    assert caplog.messages == ["the server died of SIGABRT; suspected: no engine was running"]
    assert CrashLog(settings.crash_file).suspects == set()


def test_a_server_has_the_time_to_answer_the_longest_request_that_a_build_may_ask_for() -> None:
    [most_ms] = [limit.le for limit in Batching.model_fields["timeout_ms"].metadata if hasattr(limit, "le")]
    assert most_ms / 1e3 + ENDING_S < supervisor._GRACE_S


class Slow:
    """A child that has something to finish, and the signals while it does: none."""

    stops = 0
    pid = 1

    def __init__(self) -> None:
        self.pauses = 3
        self.asked = 0

    def terminate(self) -> None:
        self.asked += 1

    def poll(self) -> int | None:
        return None if self.pauses else 0

    def pause(self, _: float) -> None:
        self.pauses -= 1

    def kill(self) -> None:
        assert not self.pauses, "it was let finish"


def test_people_are_told_whom_the_end_waits_for_and_how_to_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_SILENT_S", -1.0)
    child: Any = Slow()
    keeper: Any = SimpleNamespace(process=child, role=supervisor.SERVER)
    supervisor._end([keeper], child)
    assert child.asked == 1
    assert caplog.messages == [
        "the server is still at what it has begun with; a second signal ends it at once"
    ]


def ending(folder: Path, *statuses: int, finishes: bool) -> Role:
    """A child that ends with one of the statuses after the other, and then with none."""
    file = folder / "statuses"
    file.write_text("".join(f"{status}\n" for status in statuses))
    return Role(
        name="worker",
        module="tests.unit.service.ending",
        arguments=(str(file),),
        serves=False,
        finishes=finishes,
    )


def test_a_worker_for_one_build_is_told_how_long_to_wait() -> None:
    role = one_build_worker(2.5)
    assert (role.module, role.arguments, role.finishes) == ("service.worker", ("--once", "2.5"), True)


def test_a_worker_for_one_build_is_started_again_until_it_has_done_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    role = ending(tmp_path, os.EX_TEMPFAIL, 1, 0, 1, finishes=True)
    monkeypatch.setattr(supervisor, "one_build_worker", lambda _: role)
    assert work(Settings(home=tmp_path / "home"), say=print, once_s=1.0) == 0
    assert (tmp_path / "statuses").read_text() == "1\n", "what is left"
    assert [message.split(";")[0] for message in caplog.messages] == [
        "the worker ended with exit status 75",
        "the worker ended with exit status 1",
    ]


def test_a_worker_that_was_to_build_for_ever_is_started_again_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WORKER", ending(tmp_path, 0, 0, 0, finishes=False))
    with pytest.raises(
        StartError, match="ended 3 times in a row before octet was ready, last with exit status 0"
    ):
        work(Settings(home=tmp_path / "home"), say=print)


@pytest.mark.parametrize(("once_s", "status"), [(1.0, os.EX_TEMPFAIL), (None, 0)])
def test_one_that_is_stopped_before_its_build_is_done_has_failed_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once_s: float | None, status: int
) -> None:
    role = ending(tmp_path, finishes=once_s is not None)
    monkeypatch.setattr(supervisor, "one_build_worker", lambda _: role)
    monkeypatch.setattr(supervisor, "WORKER", role)
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    assert work(Settings(home=tmp_path / "home"), say=print, once_s=once_s) == status
