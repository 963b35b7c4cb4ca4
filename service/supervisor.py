"""`octet serve`: keeps the server and the worker running, and ends them together.

It loads no native library and opens no port, so that nothing an upload does can take it down.
"""

import contextlib
import http.client
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from urllib.parse import urlsplit

from service.errors import StartError
from service.lifeline import ChildProcess
from service.locks import exclusive
from service.settings import Settings

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
# A child that lived so long had started well.
_HEALTHY_S = 10.0
_MOST_DEATHS_AT_START = 3
_GRACE_S = 25.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Role:
    """A process that the supervisor keeps running."""

    name: str
    # Run as `python -m`.
    module: str


ROLES = (Role(name="server", module="service.server"), Role(name="worker", module="service.worker"))


def serve(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Runs octet until SIGINT or SIGTERM; `say` gets the line for people once it is ready.

    Raises:
        StartError: the folder or the port is taken, or a child cannot be kept alive.
    """
    make_home(settings)
    with exclusive(settings.home / "octet.lock"), _stop_signals() as stopping:
        check_port(settings.host, settings.port)
        children = [_Keeper(role) for role in ROLES]
        try:
            _watch(children, settings, stopping, say)
        finally:
            _end(children)


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


def check_port(host: str, port: int) -> None:
    """Finds out early, and in words, whether the server will get its address.

    Raises:
        StartError: it will not.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: an address whose last connections are only fading away is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartError(
            f"octet cannot listen on {host} port {port} ({error.strerror}); "
            "stop what listens there, or choose another with --port (OCTET_PORT)."
        ) from error


class _Keeper:
    """Keeps one child running, with a growing pause between deaths that come soon after the start."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.process: ChildProcess | None = None
        # Deaths in a row that came soon after the start, and what the last one was.
        self.early_deaths = 0
        self.last_cause = ""
        self._start_at = 0.0
        self._started_at = 0.0

    def tend(self) -> None:
        """Starts the child if it is not there and its pause is over."""
        now = time.monotonic()
        if self.process is not None and (status := self.process.poll()) is not None:
            self.process.kill()
            self.process = None
            self.last_cause = _cause(status)
            self.early_deaths = self.early_deaths + 1 if now - self._started_at < _HEALTHY_S else 0
            pause_s = min(_FIRST_PAUSE_S * 2**self.early_deaths, _LONGEST_PAUSE_S)
            self._start_at = now + pause_s
            logger.warning(
                "the %s ended with %s; it starts again in %g s", self.role.name, self.last_cause, pause_s
            )
        if self.process is None and now >= self._start_at:
            self.process = ChildProcess(self.role.module, environment=os.environ)
            self._started_at = now


class _Stopping:
    """Whether a signal has asked us to stop."""

    asked = False


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stopping]:
    stopping = _Stopping()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stopping.asked = True

    previous = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(
    keepers: Sequence[_Keeper], settings: Settings, stopping: _Stopping, say: Callable[[str], None]
) -> None:
    """Tends the children until we are asked to stop. Once octet was ready, it never gives up on one.

    Raises:
        StartError: octet did not get ready, because a child ended again and again.
    """
    ready = False
    while not stopping.asked:
        for keeper in keepers:
            keeper.tend()
            if not ready and keeper.early_deaths >= _MOST_DEATHS_AT_START:
                raise StartError(
                    f"the {keeper.role.name} ended {keeper.early_deaths} times in a row before octet was ready, "
                    f"last with {keeper.last_cause}; its messages above say why."
                )
        if not ready and _is_ready(settings.address):
            say(f"octet is ready at {settings.address}")
            ready = True
        time.sleep(_TICK_S)


def _is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(keepers: Sequence[_Keeper]) -> None:
    """Asks the children to end, once; kills those that have not within the grace time."""
    processes = [keeper.process for keeper in keepers if keeper.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            logger.warning("process %d did not end within %g s and is killed", process.pid, _GRACE_S)
        process.kill()


def _cause(status: int) -> str:
    names = {-known.value: known.name for known in signal.Signals}
    return names.get(status, f"exit status {status}")
