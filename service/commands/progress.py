"""How far a command is, on standard error: bars where somebody watches, else a line as each phase ends."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.commands.consoles import say


class PhaseProgress(Protocol):
    """Shows the phases of a build while it is entered."""

    def __enter__(self) -> Self:
        """Begins to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves what was shown."""

    def tell(self, phase: str, done: float) -> None:
        """Takes the share of `phase` that is done, 0 to 1."""


def phase_progress(console: Console) -> PhaseProgress:
    """What suits the console."""
    return _Bars(console) if console.is_terminal else _Lines(console)


class _Bars:
    """A bar for each phase, from when it begins."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, phase: str, done: float) -> None:
        if phase not in self._tasks:
            self._finish()
            self._tasks[phase] = self._progress.add_task(phase, total=1.0)
        self._progress.update(self._tasks[phase], completed=done)

    def _finish(self) -> None:
        """A phase has ended where the next one begins: some have nothing to do and say nothing of it."""
        for task in self._tasks.values():
            self._progress.update(task, completed=1.0)


class _Lines:
    """The seconds of each phase, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase: str | None = None
        self._start_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._finish()

    def tell(self, phase: str, done: float) -> None:  # noqa: ARG002 # a line in a log does not grow
        if phase != self._phase:
            self._finish()
            self._phase, self._start_s = phase, time.perf_counter()

    def _finish(self) -> None:
        if self._phase is not None:
            say(self._console, f"{self._phase:<10} {time.perf_counter() - self._start_s:.1f} s")
