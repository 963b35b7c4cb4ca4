"""The process that answers HTTP: `python -m service.server`, a child of `octet serve`.

SIGTERM and SIGINT end it in order: not ready any more; new requests get 503 and their connections are closed, until
those that were admitted are answered, which each is within its own `timeout_ms`; then nobody is listened to any more,
and it ends with status 0. A second signal ends it at once.
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from engines.runtimes.selection import describe_runtime
from service.app import OctetApp, create_app
from service.builds.patience import patiently
from service.errors import StartError, StorageFullError
from service.http.limits import ConnectionLimits
from service.http.server import HttpConfig, HttpServer
from service.monitoring.logs import configure_logging
from service.processes import listening, memory
from service.processes.lifeline import end_with_parent
from service.processes.supervisor import REFUSED
from service.serving.deployments import Deployments
from service.settings import Settings

logger = logging.getLogger(__name__)

ENDING_S = 15.0
"""How long the end may take once what was admitted is answered, whatever hangs in it: a database, an engine."""
# So long at least every client that sends another request is told that this server stops, and none is cut off.
_LAST_CALL_S = 0.25
# How long connections may take to end; they are cut afterwards.
_GRACE_S = 5
# Files that the server keeps open beside its connections: models, databases, pipes.
_OTHER_FILES = 512
# Objects made beyond those freed before young garbage is looked for: a request frees its own without that.
_YOUNG_OBJECTS = 20_000


class Server(HttpServer):
    """A server whose end after a signal is a success."""

    def __init__(self, config: HttpConfig, app: OctetApp) -> None:
        super().__init__(config)
        self._deployments: Deployments = app.state.octet.deployments
        self._retired_s: float | None = None
        # How long the end may take before the process is ended; None where others live in the same process.
        self.ends_within_s: float | None = None
        self.last_call_s = _LAST_CALL_S

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal: from the first one on this server gets no new work, at the second it ends."""
        if self._retired_s is None:
            self._retired_s = time.monotonic()
            self._deployments.retire()
        else:
            super().handle_exit(sig, frame)
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop listening and end."""
        if self._retired_s is not None:
            waited_s = time.monotonic() - self._retired_s
            # No limit but the deadlines of what was admitted: a version may allow its requests an hour.
            self.should_exit |= not self._deployments.inflight_requests and waited_s > self.last_call_s
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, and ends the connections that there are."""
        if self.ends_within_s is not None:
            # A thread, for the loop itself may hang.
            timer = threading.Timer(self.ends_within_s, _cut_short, (self.ends_within_s,))
            timer.daemon = True
            timer.start()
        for server in self.servers:
            server.close()
        listening.close(sockets or ())
        # Who has just connected is told as well, before its connection ends.
        await asyncio.sleep(self.last_call_s)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but does not raise the signals again at the end, which would make it a failure."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        earlier = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def _cut_short(after_s: float) -> None:
    logger.warning("the end of the server took longer than %g s and is cut short", after_s)
    os._exit(0)


def configured(app: OctetApp, *, host: str, port: int, limits: ConnectionLimits | None = None) -> HttpConfig:
    """How uvicorn runs the application."""
    return HttpConfig(
        app,
        limits=limits or ConnectionLimits(),
        host=host,
        port=port,
        loop="uvloop",
        lifespan="on",
        access_log=False,
        server_header=False,
        # Client addresses are not used, and rewriting them costs every request.
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
        log_config=None,
        log_level="warning",
    )


def connections_for(open_files: int) -> int:
    """How many connections a process takes that may have so many files open."""
    return max(open_files - _OTHER_FILES, open_files // 2)


def raise_open_files() -> int:
    """Lets this process open as many files as the system allows it; returns their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def keep_what_is_there() -> None:
    """Spares the collector what stays for good, modules above all.

    A collection of all objects took a fifth of a second, in which nobody was answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def main() -> None:
    """Serves until a signal.

    Raises:
        StartError: the settings cannot be used, or others would reach it and there are no keys.
    """
    memory.keep_together()
    end_with_parent()
    listeners = listening.handed_over()
    settings = Settings.load()
    configure_logging("server")
    logger.info("%s", describe_runtime())
    # Says where a fault of a library happened, before the process dies of it.
    faulthandler.enable()
    # Until there is room for it: ending would only mean to be started again, with nobody to serve either way.
    app = patiently(lambda: create_app(settings), waits_for=(StorageFullError,))
    app.gate.check_start()
    limits = ConnectionLimits(connections=connections_for(raise_open_files()))
    keep_what_is_there()
    server = Server(configured(app, host=settings.host, port=settings.port, limits=limits), app)
    server.ends_within_s = ENDING_S
    server.run(listeners)
    # A library that is compiling a model cannot be stopped, nor can the interpreter end in order beside it.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except StartError as error:
        sys.stderr.write(f"octet: {error}\n")
        sys.exit(REFUSED)
