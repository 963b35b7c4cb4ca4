"""uvicorn's server with this package's connections."""

import asyncio
import math
import os
import time
from typing import Any, cast

import uvicorn

from service.http.asgi import Application
from service.http.connection import Connection
from service.http.limits import ConnectionLimits
from service.processes import memory
from service.processes.spare_memory import SpareMemory

_TICKS_PER_S = 10
# Once so many connections have gone, what they held is given back.
_MANY_CONNECTIONS = 1000


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
        # Those that are still to be looked at before all have been.
        self._unchecked: list[Connection] = []
        # The most connections since memory was last given back.
        self._most_connections = 0
        self._spare = SpareMemory(memory.resident_bytes(os.getpid()))
        self._giving_back: asyncio.Task[None] | None = None

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; ends the connections that have kept the server waiting too long."""
        connections = cast("set[Connection]", self.server_state.connections)
        left = self._ticks - counter % self._ticks
        if left == self._ticks:
            self._unchecked = list(connections)
            self._give_back(len(self._unchecked))
        # A part each time: ten thousand at once would keep everybody else waiting for milliseconds.
        for _ in range(math.ceil(len(self._unchecked) / left)):
            connection = self._unchecked.pop()
            if connection in connections:
                connection.check()
        return await super().on_tick(counter)

    def _give_back(self, connections: int) -> None:
        self._most_connections = max(self._most_connections, connections)
        if self._most_connections - connections >= _MANY_CONNECTIONS:
            self._most_connections = connections
            memory.give_back()
        elif self._giving_back is None and self._spare.due(
            memory.resident_bytes(os.getpid()), time.monotonic()
        ):
            self._giving_back = asyncio.create_task(self._try_giving_back())

    async def _try_giving_back(self) -> None:
        before_bytes = memory.resident_bytes(os.getpid())
        await asyncio.to_thread(memory.give_back)
        self._spare.tried(before_bytes, memory.resident_bytes(os.getpid()), time.monotonic())
        self._giving_back = None
