"""What the exchange of one request needs of its connection."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from service.http.answer_head import Header
from service.http.asgi import Piece

if TYPE_CHECKING:
    from service.http.exchange import Exchange


class Channel(Protocol):
    """Where the answer to a request goes, and the rest of its body comes from."""

    # Whether the client has yet to take most of what was written.
    congested: bool

    def write(self, pieces: Sequence[Piece], size: int) -> None:
        """Sends these bytes, `size` in all, after all earlier ones."""

    async def drained(self) -> None:
        """Waits for the end of a congestion, or of the connection."""

    def more(self) -> None:
        """Asks for more of the body: reading may have been paused."""

    def read_into(self, buffer: memoryview) -> None:
        """Has what is missing of the body read into `buffer`, which it fills."""

    def run(self, exchange: "Exchange") -> None:
        """Has the application answer in a task."""

    def answered(self) -> None:
        """Takes the news that the whole answer was written."""

    def default_headers(self) -> list[Header]:
        """Headers of every answer."""

    def abort(self) -> None:
        """Ends the connection at once."""

    def ended(self, task: "asyncio.Task[None] | None") -> None:
        """Takes the news that the task of an exchange is over."""
