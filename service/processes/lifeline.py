"""A child process ends when its parent does, however the parent ended.

The child inherits the reading end of a pipe whose other end only the parent holds: when the parent is gone,
the kernel closes that, and a thread of the child sees the end of the stream. A library that never lets go of
the interpreter would keep that thread from running, so on Linux the kernel is asked for a signal too.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

_LIFELINE = "OCTET_LIFELINE"
"""Environment variable of the child: the file descriptor to watch, and the parent's process id."""
_PR_SET_PDEATHSIG = 1
_SOURCE = str(Path(__file__).parents[2])
"""Where octet's packages lie, whether installed or not."""

# Linux sends the parent-death signal when the *thread* that started the child ends: this one lasts.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octet-start-child")


class ChildProcess:
    """A child that runs a module of ours and ends with us.

    It has a session of its own, so that a terminal's signals do not reach it.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        output: int | IO[bytes] | None = None,
    ) -> None:
        reading, self._writing = os.pipe()
        try:
            self._process: subprocess.Popen[bytes] = _starter.submit(
                subprocess.Popen,
                # -P: a file in the folder where octet was started must not stand in for a library.
                [sys.executable, "-P", "-m", module, *arguments],
                env={
                    **environment,
                    "PYTHONPATH": os.pathsep.join(filter(None, (_SOURCE, environment.get("PYTHONPATH")))),
                    _LIFELINE: f"{reading}:{os.getpid()}",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(*pass_fds, reading),
                start_new_session=True,
            ).result()
        except BaseException:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    @property
    def pid(self) -> int:
        """The child's process id, and that of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for the end and returns the exit status.

        Raises:
            TimeoutError: it still runs after `timeout_s`.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s.") from error

    def terminate(self) -> None:
        """Asks it to end. Does nothing where it has."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and whatever it started in its session, and waits for its end. Idempotent."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1


def end_with_parent() -> None:
    """Called first thing in a child: from now on it ends when its parent does. Else, does nothing."""
    lifeline = os.environ.pop(_LIFELINE, None)
    if lifeline is None:
        return
    handle, parent = (int(part) for part in lifeline.split(":"))
    os.set_inheritable(handle, False)  # noqa: FBT003 - the function takes no keywords
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the kernel was asked.
        _end()
    threading.Thread(target=_watch, args=(handle,), name="octet-lifeline", daemon=True).start()


def _watch(handle: int) -> None:
    while os.read(handle, 1):
        pass
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
