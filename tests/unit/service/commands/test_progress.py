"""Progress where nobody watches: a line for each phase, and nothing else."""

import io
import re

import pytest
from rich.console import Console

from service.commands.progress import phase_progress


def told(*steps: tuple[str, float], terminal: bool = False) -> str:
    said = io.StringIO()
    with phase_progress(Console(file=said, force_terminal=terminal, width=80)) as progress:
        for phase, done in steps:
            progress.tell(phase, done)
    return said.getvalue()


STEPS = (("validate", 0.2), ("validate", 1.0), ("calibrate", 0.1), *(("verify", n / 50) for n in range(51)))


def test_a_log_gets_a_line_for_each_phase_however_often_it_is_told() -> None:
    lines = told(*STEPS).splitlines()
    assert [line.split()[0] for line in lines] == ["validate", "calibrate", "verify"]
    assert all(re.fullmatch(r"[a-z]+ +[0-9]+[.][0-9] s", line) for line in lines)


def test_a_phase_that_fails_is_not_said_to_have_ended() -> None:
    said = io.StringIO()

    def fail() -> None:
        with phase_progress(Console(file=said, width=80)) as progress:
            progress.tell("validate", 1.0)
            progress.tell("prepare", 0.5)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert [line.split()[0] for line in said.getvalue().splitlines()] == ["validate"]


def test_a_terminal_gets_bars_and_ended_phases_are_full() -> None:
    said = told(("validate", 0.2), ("prepare", 1.0), terminal=True)
    last = said.rsplit("validate", 1)[1]
    assert last.count("100%") == 2
