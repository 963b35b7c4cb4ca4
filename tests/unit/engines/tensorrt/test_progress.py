"""The share of a build that is done, from TensorRT's phases; what is raised ends the build and comes out again."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes import installed


@pytest.fixture
def progress() -> Iterator[Callable[[Callable[[float], None]], Any]]:
    with installed():
        from engines.runtimes.tensorrt.progress import BuildProgress  # noqa: PLC0415 # it imports what is fake

        yield BuildProgress


def test_steps_of_inner_phases_are_parts_of_a_step_of_the_outer_one(progress: Any) -> None:
    told: list[float] = []
    monitor = progress(told.append)
    monitor.phase_start("outer", None, 2)
    monitor.phase_start("inner", "outer", 4)
    assert monitor.step_complete("inner", 0)
    assert monitor.step_complete("inner", 1)
    monitor.phase_finish("inner")
    assert monitor.step_complete("outer", 0)
    monitor.phase_start("second", "outer", 1)
    assert monitor.step_complete("second", 0)
    monitor.phase_finish("second")
    monitor.phase_finish("outer")
    assert told == [0.125, 0.25, 0.5, 1.0]
    monitor.check()


def test_progress_never_goes_back_and_unknown_phases_are_no_error(progress: Any) -> None:
    told: list[float] = []
    monitor = progress(told.append)
    monitor.phase_start("first", None, 2)
    monitor.step_complete("first", 0)
    monitor.phase_start("again", None, 10)
    assert monitor.step_complete("again", 0)
    assert monitor.step_complete("never begun", 3)
    monitor.phase_finish("never begun")
    monitor.phase_start("empty", "unknown", 0)
    monitor.phase_finish("empty")
    assert told == [0.5, 1.0]


def test_what_the_callable_raises_stops_the_build_and_is_raised_in_the_callers_thread(progress: Any) -> None:
    def refuse(_: float) -> None:
        raise KeyboardInterrupt

    monitor = progress(refuse)
    monitor.phase_start("only", None, 3)
    assert monitor.step_complete("only", 0) is False
    assert monitor.step_complete("only", 1) is False
    with pytest.raises(KeyboardInterrupt):
        monitor.check()
