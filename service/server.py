"""The server: HTTP and engines. `python -m service.server`."""

import sys

import uvicorn

from service.app import create_app
from service.errors import StartError
from service.lifeline import end_with_parent
from service.logs import configure_logging
from service.settings import Settings

_DRAIN_S = 20
"""How long requests that are being answered may take after SIGTERM; less than the supervisor's grace time."""


def main() -> None:
    """Runs until SIGTERM, then answers what it has and ends."""
    end_with_parent()
    settings = Settings.load()
    configure_logging("server")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


if __name__ == "__main__":
    try:
        main()
    except StartError as error:
        sys.exit(f"octet: {error}")
