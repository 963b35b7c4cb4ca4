import json
import logging
from pathlib import Path

import pytest

from engines.options import Batching
from service.processes import supervisor
from service.processes.supervisor import blame
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
