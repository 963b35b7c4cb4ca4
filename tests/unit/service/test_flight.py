import os
import signal
import threading
from pathlib import Path

import pytest

from service.serving.flight import MOST_ENTRIES, FlightRecorder, Subject, read
from tests.disks import filled

A = Subject(model="a", number=1, build_id="a" * 32)
B = Subject(model="b" * 63, number=2, build_id="b" * 32)


def running(path: Path) -> list[str]:
    return [flown.subject.model for flown in read(path) if flown.running]


def test_nothing_was_running_where_no_server_was(tmp_path: Path) -> None:
    assert read(tmp_path / "flight") == []


@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_file_of_another_layout_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "flight").write_bytes(content)
    assert read(tmp_path / "flight") == []


def test_tells_what_runs_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    recorder = FlightRecorder(path)
    first, second = recorder.entry(A), recorder.entry(B)
    assert running(path) == []
    assert first.run(lambda: running(path)) == ["a"]
    assert first.run(lambda: second.call(lambda: running(path))) == ["a", B.model]
    assert running(path) == []


def test_what_raised_is_not_running(tmp_path: Path) -> None:
    flight = FlightRecorder(tmp_path / "flight").entry(A)
    with pytest.raises(ZeroDivisionError):
        flight.run(lambda: 1 // 0)
    assert running(tmp_path / "flight") == []


def test_the_second_of_two_calls_of_an_engine_is_still_running(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    flight = FlightRecorder(path).entry(A)

    def both() -> list[str]:
        flight.call(lambda: None)
        return running(path)

    assert flight.run(both) == ["a"]


def test_outlives_a_process_that_dies_of_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    child = os.fork()
    if not child:
        recorder = FlightRecorder(path)
        recorder.entry(B).run(lambda: None)
        recorder.entry(A).run(lambda: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    assert [(flown.subject, flown.running, flown.batches) for flown in read(path)] == [
        (B, False, 1),
        (A, True, 0),
    ]


def test_counts_batches_over_the_lives_of_servers_and_engines(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    flight = FlightRecorder(path).entry(A)
    for _ in range(3):
        flight.run(lambda: None)
    recorder = FlightRecorder(path)
    assert (recorder.batches(A), recorder.batches(B)) == (3, 0)
    again = recorder.entry(A)
    again.run(lambda: None)
    again.close()
    assert recorder.batches(A) == 4
    assert FlightRecorder(path).batches(A) == 4


def test_an_earlier_server_that_still_writes_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    late = FlightRecorder(path).entry(A)
    FlightRecorder(path)
    assert late.run(lambda: running(path)) == []


def test_entries_are_used_again(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    recorder = FlightRecorder(path)
    for _ in range(MOST_ENTRIES + 1):
        flight = recorder.entry(A)
        flight.close()
        flight.close()
    taken = [recorder.entry(A) for _ in range(MOST_ENTRIES)]
    without_room = recorder.entry(B)
    assert without_room.run(lambda: running(path)) == []
    taken[0].close()
    assert recorder.entry(B).run(lambda: running(path)) == [B.model]


def test_an_engine_that_comes_back_after_its_entry_was_given_away_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    recorder = FlightRecorder(path)
    flight = recorder.entry(A)
    flight.run(flight.close)
    assert running(path) == []


def test_suspects_take_turns_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    recorder = FlightRecorder(path, suspects={A.build_id, B.build_id})
    innocent = Subject(model="c", number=1, build_id="c" * 32)
    first, second, third = recorder.entry(A), recorder.entry(B), recorder.entry(innocent)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(10)

    threads = [
        threading.Thread(target=first.run, args=(hold,)),
        threading.Thread(target=second.run, args=(lambda: None,)),
    ]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    assert third.run(lambda: running(path)) == ["a", "c"]
    assert (first.batches, second.batches) == (0, 0)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert (first.batches, second.batches) == (1, 1)


def test_on_a_full_disk_engines_run_unrecorded(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file with holes would end the process at the first write into one."""
    path = small / "flight"
    FlightRecorder(path).entry(A).run(lambda: None)
    path.unlink()
    with filled(small):
        recorder = FlightRecorder(path)
        # An entry on every page of it.
        flights = [recorder.entry(A) for _ in range(MOST_ENTRIES)]
        assert [flight.run(lambda: 7) for flight in flights[::30]] == [7] * len(flights[::30])
        assert read(path) == []
    assert "a crash will not tell which version it was due to" in caplog.text
    assert not list(small.glob("flight*"))


def test_a_full_disk_later_costs_the_record_nothing(small: Path) -> None:
    path = small / "flight"
    recorder = FlightRecorder(path)
    with filled(small):
        flights = [recorder.entry(A) for _ in range(MOST_ENTRIES)]
        assert flights[-1].run(lambda: running(path)) == ["a"]
