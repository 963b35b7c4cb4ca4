from pathlib import Path

import pytest

from service.serving.flight import Subject
from service.serving.quarantine import FORGOTTEN_S, Crash, CrashLog, quarantined, suspects, with_crash
from tests.disks import filled


def subject(name: str) -> Subject:
    return Subject(model=name, number=1, build_id=f"build-{name}")


def after(*crashes: str, every_s: float = 1.0) -> list[Crash]:
    """The log after these crashes, each given by the letters of the models that were running."""
    log: list[Crash] = []
    for number, names in enumerate(crashes):
        log = with_crash(log, map(subject, names), cause="SIGSEGV", at_s=number * every_s)
    return log


def guilty(log: list[Crash]) -> set[str]:
    return {found.subject.model for found in quarantined(log).values()}


@pytest.mark.parametrize(
    ("crashes", "expected"),
    [
        ([], set()),
        (["a"], set()),
        (["a", "a"], {"a"}),
        (["a", "b"], set()),
        (["a", "b", "b"], {"b"}),
        # The one that both crashes have in common.
        (["ab", "a"], {"a"}),
        (["ab", "bc"], {"b"}),
        (["abc", "cd"], {"c"}),
        # Who ran beside it was cleared by that, and is no closer to a quarantine than before.
        (["ab", "a", "bc"], {"a"}),
        (["ab", "a", "bc", "c"], {"a", "c"}),
        (["ab", "a", "b", "b"], {"a", "b"}),
        # Nobody was running: nobody is blamed.
        (["", "", ""], set()),
        (["a", "", "a"], {"a"}),
    ],
)
def test_blames_who_ran_in_two_crashes(crashes: list[str], expected: set[str]) -> None:
    assert guilty(after(*crashes)) == expected


def test_suspects_are_those_of_crashes_that_nothing_explains() -> None:
    assert suspects(after("ab")) == {"build-a", "build-b"}
    assert suspects(after("ab", "a")) == set()
    assert suspects(after("ab", "a", "c")) == {"build-c"}


def test_a_crash_of_long_ago_counts_no_more() -> None:
    assert guilty(after("a", "a", every_s=FORGOTTEN_S - 1)) == {"a"}
    assert guilty(after("a", "a", every_s=FORGOTTEN_S)) == set()


def test_a_new_build_under_the_same_name_and_number_starts_clean() -> None:
    log = after("a", "a")
    assert "build-a" in quarantined(log)
    assert "another-build" not in quarantined(log)


def test_the_reason_says_what_happened_and_what_to_do() -> None:
    (found,) = quarantined(after("m", "m")).values()
    assert found.reason == (
        "the server crashed 2 times while this version ran, the last time with SIGSEGV at 1970-01-01 00:00:01 UTC; "
        "promote another version or build a new one, or try it again with POST /v2/repository/models/m/load"
    )


def test_the_log_survives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    CrashLog(path).add([subject("a"), subject("b")], cause="SIGSEGV")
    assert CrashLog(path).suspects == {"build-a", "build-b"}
    crash = CrashLog(path).add([subject("a")], cause="SIGABRT")
    assert (crash.cause, crash.suspects) == ("SIGABRT", (subject("a"),))
    assert list(CrashLog(path).quarantined) == ["build-a"]


def test_who_is_forgiven_may_crash_twice_again(tmp_path: Path) -> None:
    log = CrashLog(tmp_path / "crashes.json")
    for _ in range(2):
        log.add([subject("a")], cause="SIGSEGV")
        log.add([subject("b")], cause="SIGSEGV")
    log.forgive(["build-a", "unknown"])
    assert list(log.quarantined) == ["build-b"] == list(CrashLog(tmp_path / "crashes.json").quarantined)
    log.add([subject("a")], cause="SIGSEGV")
    assert list(log.quarantined) == ["build-b"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"at_s": 1}]', "null"])
def test_a_damaged_log_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "crashes.json"
    path.write_text(content)
    log = CrashLog(path)
    assert log.quarantined == {}
    log.add([subject("a")], cause="SIGSEGV")
    assert CrashLog(path).suspects == {"build-a"}


def test_on_a_full_disk_a_crash_is_blamed_all_the_same(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = CrashLog(small / "crashes.json")
    with filled(small):
        assert log.add([subject("a")], cause="SIGSEGV").has("build-a")
        assert log.suspects == {"build-a"}
        log.forgive(["build-a"])
    assert "the crash is forgotten with this process" in caplog.text
