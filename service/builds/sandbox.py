"""Native work in a child process with limits: a crash, a hang or a leak in it costs the child alone."""

import contextlib
import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from engines import errors as engine_errors
from service.builds import child
from service.errors import CancelledBuildError, SandboxCrashError, SandboxError, StorageFullError
from service.processes.lifeline import ChildProcess
from service.processes.memory import resident_bytes

_TICK_S = 0.1
_EXIT_GRACE_S = 1.0
_LAST_WORDS_BYTES = 2000
_LARGEST_ANSWER_BYTES = 8 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call in a sandbox may take."""

    # Wall-clock seconds of one call.
    timeout_s: float
    # Resident memory of the child. Not address space: CUDA reserves far more than it uses.
    memory_bytes: int
    # Largest single file that the child may write.
    file_bytes: int = 64 * _GIB


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Whom a call in a sandbox keeps informed, and asks."""

    # Takes the share of the call that is done, 0 to 1.
    progress: Callable[[float], None] = field(default=lambda _done: None)
    # Whether the work is no longer wanted; asked several times a second.
    cancelled: Callable[[], bool] = field(default=lambda: False)


class Sandbox:
    """One child process, started at the first call and again after it has died.

    One call at a time. `module` is run as `python -m`; its functions are all that can be called.
    """

    def __init__(
        self, limits: Limits, *, environment: Mapping[str, str], module: str = "service.builds.child"
    ) -> None:
        self._limits = limits
        self._environment = {**environment, "OCTET_FILE_BYTES": str(limits.file_bytes)}
        # What was uploaded runs there, and has nothing to do with who may do what.
        self._environment.pop("OCTET_ADMIN_KEY", None)
        self._module = module
        self._connection: _Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, where there is one."""
        return self._connection.process.pid if self._connection else None

    def call(self, function: str, arguments: Mapping[str, Any], *, what: str, watch: Watch = Watch()) -> Any:
        """Calls an allowed function in the child and returns its result. `what` names the work in messages.

        Raises:
            EngineError: the function raised it; the same class, message and code.
            StorageFullError: the disk had no room for what it wrote.
            SandboxCrashError: the child died of a fault, in this call.
            SandboxError: the call took too long or too much memory, or failed in a way that nobody foresaw.
            CancelledBuildError: `watch.cancelled` became true; the child has been killed.
        """
        if self._connection is None:
            self._connection = _Connection(self._module, self._environment)
        try:
            with _killed_on_error(self):
                self._connection.send({"function": function, "arguments": dict(arguments)})
                answer = self._await(self._connection, what, watch)
        except _ChildEndedError as ended:
            raise _crash(what, ended) from ended
        if "error" in answer:
            raise _translated(what, str(answer["error"]), str(answer.get("code")), self._limits)
        return answer.get("result")

    def close(self) -> None:
        """Ends the child. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, connection: "_Connection", what: str, watch: Watch) -> dict[str, Any]:
        started = time.monotonic()
        while True:
            for answer in connection.receive(_TICK_S):
                if "progress" not in answer:
                    return answer
                watch.progress(float(answer["progress"]))
            if watch.cancelled():
                raise CancelledBuildError("the build was cancelled.")
            if time.monotonic() - started > self._limits.timeout_s:
                raise SandboxError(
                    f"{what} was stopped after {self._limits.timeout_s:g} s, its limit; "
                    "use a smaller model or fewer samples, or raise OCTET_BUILD_TIMEOUT_S."
                )
            used_bytes = resident_bytes(connection.process.pid)
            if used_bytes > self._limits.memory_bytes:
                raise _too_much_memory(what, used_bytes, self._limits)


class _ChildEndedError(Exception):
    """The child closed the pipe: it is dead."""

    def __init__(self, status: int, last_words: str) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        self.last_words = last_words


class _Connection:
    """The child and the pipes to it: requests, responses, and what its libraries print."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        requests, self._requests = os.pipe()
        self._responses, responses = os.pipe()
        self._output, output = os.pipe()
        try:
            self.process = ChildProcess(
                module,
                (str(requests), str(responses)),
                environment=environment,
                pass_fds=(requests, responses),
                output=output,
            )
        except BaseException:
            self._close_ours()
            raise
        finally:
            for theirs in (requests, responses, output):
                os.close(theirs)
        self._pending = bytearray()
        self._printed: deque[int] = deque(maxlen=_LAST_WORDS_BYTES)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._responses, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError as error:
            raise self._ended() from error

    def receive(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """The answers that arrive within `timeout_s`, as soon as there are any."""
        for key, _ in self._selector.select(timeout_s):
            chunk = os.read(key.fd, 1 << 16)
            if key.fd == self._output:
                self._printed.extend(chunk)
                if not chunk:
                    self._selector.unregister(self._output)
            elif chunk:
                self._pending += chunk
            else:
                raise self._ended()
        while (end := self._pending.find(b"\n")) >= 0:
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            yield _parsed(line)
        if len(self._pending) > _LARGEST_ANSWER_BYTES:
            raise SandboxError(f"the sandbox answered with more than {_LARGEST_ANSWER_BYTES} bytes.")

    def close(self) -> None:
        self.process.kill()
        self._selector.close()
        self._close_ours()

    def _close_ours(self) -> None:
        for ours in (self._requests, self._responses, self._output):
            os.close(ours)

    def _ended(self) -> _ChildEndedError:
        # The pipe closes a moment before the process has its exit status.
        with contextlib.suppress(TimeoutError):
            self.process.wait(_EXIT_GRACE_S)
        self.process.kill()
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._output, 1 << 16):
                self._printed.extend(chunk)
        return _ChildEndedError(self.process.wait(), bytes(self._printed).decode(errors="replace"))


@contextlib.contextmanager
def _killed_on_error(sandbox: Sandbox) -> Iterator[None]:
    """Whatever interrupts a call leaves no half-done work behind."""
    try:
        yield
    except BaseException:
        sandbox.close()
        raise


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise SandboxError(f"the sandbox answered with something that is no JSON: {line[:80]!r}.") from error
    if not isinstance(answer, dict):
        raise SandboxError(f"the sandbox answered with {line[:80]!r}, which is no object.")
    return answer


def _crash(what: str, ended: _ChildEndedError) -> SandboxCrashError:
    words = " ".join(ended.last_words.split())[-300:]
    said = f" (its last output: {words})" if words else ""
    if ended.status == -signal.SIGKILL:
        return SandboxCrashError(
            f"{what} was killed by the system, most likely because memory ran out{said}; "
            "use a smaller model or fewer samples, or give the machine more memory."
        )
    signals = {-known.value: known.name for known in signal.Signals}
    cause = signals.get(ended.status, f"exit status {ended.status}")
    return SandboxCrashError(
        f"{what} crashed inside a native library with {cause}{said}; check the model with onnx.checker, "
        "run it with onnxruntime, and export it anew, for example with another opset."
    )


def _translated(what: str, message: str, code: str, limits: Limits) -> Exception:
    if code == child.OUT_OF_MEMORY:
        return _too_much_memory(what, None, limits)
    if code == child.INTERNAL:
        return SandboxError(
            f"{what} failed in a way that octet did not foresee ({message}); "
            "try another opset or smaller samples, and report this message if it stays."
        )
    if code == StorageFullError.code:
        return StorageFullError(message)
    classes = {known.code: known for known in engine_errors.EngineError.__subclasses__()}
    return classes.get(code, engine_errors.EngineError)(message)


def _too_much_memory(what: str, used_bytes: int | None, limits: Limits) -> SandboxError:
    seen = (
        f"{what} ran out of memory"
        if used_bytes is None
        else f"{what} took {used_bytes / _GIB:.2f} GiB of memory"
    )
    return SandboxError(
        f"{seen}; its limit is {limits.memory_bytes / _GIB:.2f} GiB. "
        "Use a smaller model or fewer samples, or raise OCTET_BUILD_MEMORY_BYTES."
    )
