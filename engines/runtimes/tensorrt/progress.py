"""How far TensorRT's builder is, from the phases and steps that it reports."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsInt

from engines.runtimes.tensorrt.library import trt


@dataclass(kw_only=True)
class _Phase:
    steps: int
    # The phase that it is a step of, and which one.
    parent: str | None
    step: int
    done: int = 0


class BuildProgress(trt.IProgressMonitor):
    """Tells a callable the share of the build that is done.

    TensorRT calls it from threads of its own, where a Python error would end the process: what the callable raises is
    kept, the build is ended, and `check` raises it again in the caller's thread.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._tell = tell
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._error: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """A phase begins, inside of another or at the top."""
        with self._lock:
            parent = self._phases.get(parent_phase) if parent_phase else None
            self._phases[phase_name] = _Phase(
                steps=max(1, int(num_steps)),
                parent=parent_phase if parent else None,
                step=parent.done if parent else 0,
            )

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """A step is done; False ends the build."""
        with self._lock:
            phase = self._phases.get(phase_name)
            if phase is not None:
                phase.done = max(phase.done, int(step) + 1)
            return self._report(phase_name)

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over."""
        with self._lock:
            if (phase := self._phases.get(phase_name)) is not None:
                phase.done = phase.steps
                self._report(phase_name)
                del self._phases[phase_name]

    def check(self) -> None:
        """Raises what the callable raised, if anything."""
        if self._error is not None:
            raise self._error

    def _report(self, name: str) -> bool:
        """Tells the share; False where somebody wants the build to end."""
        share = min(1.0, self._share_of(name))
        if self._error is None and share > self._share:
            self._share = share
            try:
                self._tell(share)
            except BaseException as error:  # noqa: BLE001 # it must not reach TensorRT's threads; see the class
                self._error = error
        return self._error is None

    def _share_of(self, name: str) -> float:
        """The share of the whole at which a phase is: its own share is a part of one step of its parent."""
        phase = self._phases.get(name)
        if phase is None:
            return 0.0
        share = phase.done / phase.steps
        while phase.parent is not None and phase.parent in self._phases:
            parent = self._phases[phase.parent]
            share = min(1.0, (phase.step + share) / parent.steps)
            phase = parent
        return share
