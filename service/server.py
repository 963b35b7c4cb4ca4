"""The process that answers HTTP: `python -m service.server`, a child of `octet serve`.

SIGTERM and SIGINT end it in order: not ready any more, no new connections, admitted requests answered,
status 0.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import uvicorn

from service.app import OctetApp, create_app
from service.errors import StartError
from service.lifeline import end_with_parent
from service.logs import configure_logging
from service.settings import Settings

# How long admitted requests may take after a signal; connections that are still open then are cut. Less than
# the supervisor's own patience.
_GRACE_S = 20


class Server(uvicorn.Server):
    """uvicorn, whose end after a signal is a success."""

    def __init__(self, config: uvicorn.Config, app: OctetApp) -> None:
        super().__init__(config)
        self._octet = app.state.octet

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal: from now on this server gets no new work."""
        self._octet.deployments.retire()
        super().handle_exit(sig, frame)

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


def configured(app: OctetApp, *, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        # Client addresses are not used, and rewriting them costs every request.
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
        log_config=None,
        log_level="warning",
    )


def main() -> None:
    """Serves until a signal.

    Raises:
        StartError: the settings cannot be used.
    """
    end_with_parent()
    settings = Settings.load()
    configure_logging("server")
    app = create_app(settings)
    Server(configured(app, host=settings.host, port=settings.port), app).run()


if __name__ == "__main__":
    try:
        main()
    except StartError as error:
        sys.exit(f"octet: {error}")
