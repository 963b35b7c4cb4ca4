"""uvicorn's server with this package's connections."""

from typing import Any, cast

import uvicorn

from service.http.connection import Connection
from service.http.exchange import Application
from service.http.limits import ConnectionLimits

_TICKS_PER_S = 10


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration, with the limits of connections."""

    def __init__(self, app: Application, *, limits: ConnectionLimits, **rest: Any) -> None:
        super().__init__(app, http=Connection, ws="none", **rest)
        self.limits = limits


class HttpServer(uvicorn.Server):
    """A server that looks after its connections."""

    def __init__(self, config: HttpConfig) -> None:
        super().__init__(config)
        self._ticks = max(1, round(config.limits.check_s * _TICKS_PER_S))

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; ends the connections that have kept the server waiting too long."""
        if counter % self._ticks == 0:
            for connection in cast("list[Connection]", list(self.server_state.connections)):
                connection.check()
        return await super().on_tick(counter)
