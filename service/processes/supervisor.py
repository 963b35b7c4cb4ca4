"""`octet serve` and `octet worker`: keep the server, the worker or both running, and end them together.

It loads no native library and accepts no connection, so that nothing an upload does can take it down. It holds the
address on which the server accepts, and after a crash of the server it notes who was running.
"""

import contextlib
import http.client
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from socket import socket
from types import FrameType
from urllib.parse import urlsplit

from service.errors import StartError
from service.processes import listening
from service.processes.lifeline import ChildProcess
from service.processes.locks import exclusive
from service.serving import flight
from service.serving.quarantine import FAULTS, CrashLog
from service.settings import Settings

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
# A child that lived so long had started well.
_HEALTHY_S = 10.0
_MOST_DEATHS_AT_START = 3
# Longer than a server that does well ever takes: the longest request that a build may ask for, and the end itself.
# Whoever cannot wait says so with a second signal, or ends us with SIGKILL, and then the children end as well.
_GRACE_S = 3630.0
# After so long people are told what is waited for, and what they can do about it.
_SILENT_S = 3.0
REFUSED = os.EX_CONFIG
"""Exit status of a child that cannot start as it was told to, and has said why: trying again would not help."""
READY = "worker.ready"
"""A file under the home that is there once the worker takes builds, touched for as long as its main loop goes round."""
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Role:
    """A process that the supervisor keeps running."""

    name: str
    # Run as `python -m`.
    module: str
    # Of the module.
    arguments: tuple[str, ...] = ()
    # Whether it answers HTTP and runs engines.
    serves: bool
    # Whether it may be done: its exit status 0 then ends octet, where it would be started again.
    finishes: bool = False


SERVER = Role(name="server", module="service.server", serves=True)
WORKER = Role(name="worker", module="service.worker", serves=False)


def one_build_worker(idle_s: float) -> Role:
    """A worker that is done after one build, or once none has come to it within `idle_s`.

    Where another worker has its build, or the queue could not note a step, it ends with EX_TEMPFAIL. It is then started
    again here, as after every death: it keeps its name, under which a build of its own goes on at once, and without one
    it may still do what it came for. A pod that failed instead would have to be scheduled anew, and wait for a lease.
    """
    return Role(
        name="worker", module="service.worker", arguments=("--once", str(idle_s)), serves=False, finishes=True
    )


def serve(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Runs a server, and a worker where the settings say so, until SIGINT or SIGTERM.

    `say` gets the line for people once octet is ready.

    Raises:
        StartError: the folder or the port is taken, or a child cannot be kept alive.
    """
    roles = (SERVER, WORKER) if settings.has_worker else (SERVER,)
    ready = _Ready(
        test=lambda: _is_ready(settings.address), say=lambda: say(f"octet is ready at {settings.address}")
    )
    _supervise(settings, roles, ready)


def work(settings: Settings, *, say: Callable[[str], None], once_s: float | None = None) -> int:
    """Runs a worker alone, until SIGINT or SIGTERM; `say` gets the line for people once it takes builds.

    With `once_s` it ends by itself after one build, or once none has come within that time.

    Returns:
        The exit status: 0, but EX_TEMPFAIL where it was stopped before its one build was done. Who takes 0 for the
        end of a job then starts another.

    Raises:
        StartError: the folder is taken, or the worker cannot be kept alive.
    """
    mark = settings.home / READY
    mark.unlink(missing_ok=True)
    ready = _Ready(test=mark.exists, say=lambda: say("octet is ready for builds"))
    role = WORKER if once_s is None else one_build_worker(once_s)
    finished = _supervise(settings, (role,), ready)
    return 0 if finished or not role.finishes else os.EX_TEMPFAIL


def _supervise(settings: Settings, roles: Sequence[Role], ready: "_Ready") -> bool:
    """Runs these roles until SIGINT or SIGTERM, or until one that finishes is done; whether one was.

    Raises:
        StartError: the folder or the port is taken, or a child cannot be kept alive.
    """
    make_home(settings)
    with exclusive(settings.home / "octet.lock"), _signals() as signals:
        serves = any(role.serves for role in roles)
        listeners = listening.listen(settings.host, settings.port) if serves else []
        children = [_Keeper(role, settings, listeners) for role in roles]
        try:
            return _watch(children, ready, signals)
        finally:
            # From here on the server alone accepts, for as long as it likes.
            listening.close(listeners)
            _end(children, signals)


def make_home(settings: Settings) -> None:
    """Makes the folder, for this user alone: it holds what people uploaded.

    Raises:
        StartError: it cannot be made or written to.
    """
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(settings.home, os.W_OK | os.X_OK)
    except OSError as error:
        raise StartError(
            f"the folder {settings.home} cannot be made ({error.strerror}); "
            "set OCTET_HOME to a folder that this user may write to."
        ) from error
    if not writable:
        raise StartError(f"the folder {settings.home} cannot be written to; set OCTET_HOME to another one.")


class _Keeper:
    """Keeps one child running, with a growing pause between deaths that come soon after the start."""

    def __init__(self, role: Role, settings: Settings, listeners: Sequence[socket]) -> None:
        self.role = role
        self.process: ChildProcess | None = None
        # Deaths in a row that came soon after the start, and what the last one was.
        self.early_deaths = 0
        self.last_cause = ""
        # Whether it has done all that it was there for.
        self.finished = False
        self._settings = settings
        self._listeners = listeners if role.serves else ()
        self._start_at = 0.0
        self._started_at = 0.0

    def tend(self, *, starting: bool) -> None:
        """Starts the child if it is not there and its pause is over.

        Raises:
            StartError: octet is still `starting`, and the child has said that it cannot start as it was told to.
        """
        now = time.monotonic()
        if self.process is not None and (status := self.process.poll()) is not None:
            self.process.kill()
            self.process = None
            if self.role.finishes and status == 0:
                self.finished = True
                return
            self.last_cause = _cause(status)
            if starting and status == REFUSED:
                raise StartError(
                    f"the {self.role.name} cannot start as it was told to; its message above says why."
                )
            early = now - self._started_at < _HEALTHY_S
            self.early_deaths = self.early_deaths + 1 if early else 0
            pause_s = min(_FIRST_PAUSE_S * 2**self.early_deaths, _LONGEST_PAUSE_S) if early else 0.0
            self._start_at = now + pause_s
            logger.warning(
                "the %s ended with %s; it starts again in %g s", self.role.name, self.last_cause, pause_s
            )
            if self.role.serves and -status in FAULTS:
                blame(self._settings, self.last_cause)
        if self.process is None and now >= self._start_at:
            self.process = ChildProcess(
                self.role.module,
                self.role.arguments,
                environment=os.environ | listening.handing_over(self._listeners),
                pass_fds=[listener.fileno() for listener in self._listeners],
            )
            self._started_at = now


def blame(settings: Settings, cause: str) -> None:
    """Notes which versions were running when the server died of a fault."""
    running = [flown.subject for flown in flight.read(settings.flight_file) if flown.running]
    crash = CrashLog(settings.crash_file).add(running, cause=cause)
    names = [f"version {subject.number} of {subject.model}" for subject in crash.suspects]
    logger.error("the server died of %s; suspected: %s", cause, ", ".join(names) or "no engine was running")


class _Signals:
    """The signals that ask us to stop, and a pause that they and the deaths of children end."""

    def __init__(self, woken: int) -> None:
        """`woken` is a descriptor that can be read once a signal has arrived."""
        # How often we were asked.
        self.stops = 0
        self._woken = woken

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Takes a signal."""
        self.stops += number in _STOPS

    def pause(self, longest_s: float) -> None:
        """Waits until a signal arrives, `longest_s` at most."""
        select.select([self._woken], [], [], longest_s)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, 512):
                pass


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    woken, wake_up = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake_up, False)
    signals = _Signals(woken)
    previous = {number: signal.signal(number, signals.handle) for number in (*_STOPS, signal.SIGCHLD)}
    earlier = signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(wake_up)


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """When octet is ready, and how people learn of it."""

    test: Callable[[], bool]
    say: Callable[[], None]


def _watch(keepers: Sequence[_Keeper], ready: _Ready, signals: _Signals) -> bool:
    """Tends the children until we are asked to stop, or one has finished: whether one has.

    Once octet was ready, it never gives up on one.

    Raises:
        StartError: octet did not get ready, because a child ended again and again.
    """
    was_ready = False
    while not signals.stops:
        for keeper in keepers:
            keeper.tend(starting=not was_ready)
            if keeper.finished:
                return True
            if not was_ready and keeper.early_deaths >= _MOST_DEATHS_AT_START:
                raise StartError(
                    f"the {keeper.role.name} ended {keeper.early_deaths} times in a row before octet was ready, "
                    f"last with {keeper.last_cause}; its messages above say why."
                )
        if not was_ready and ready.test():
            ready.say()
            was_ready = True
        signals.pause(_TICK_S)
    return False


def _is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(keepers: Sequence[_Keeper], signals: _Signals) -> None:
    """Asks the children to end, once; kills those that have not within the grace time, or at a second signal."""
    names = {keeper.process: keeper.role.name for keeper in keepers if keeper.process is not None}
    processes = list(names)
    for process in processes:
        process.terminate()
    began_s, told = time.monotonic(), False
    while (living := [process for process in processes if process.poll() is None]) and signals.stops < 2:
        waited_s = time.monotonic() - began_s
        if waited_s > _GRACE_S:
            break
        if waited_s > _SILENT_S and not told:
            told = True
            logger.warning(
                "the %s is still at what it has begun with; a second signal ends it at once",
                " and the ".join(names[process] for process in living),
            )
        signals.pause(_TICK_S)
    for process in living:
        logger.warning("process %d did not end in time and is killed", process.pid)
    for process in processes:
        process.kill()


def _cause(status: int) -> str:
    names = {-known.value: known.name for known in signal.Signals}
    return names.get(status, f"exit status {status}")
