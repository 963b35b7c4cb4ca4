"""An answer that an ASGI application sends in messages: its head, then its body in pieces.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from collections.abc import Sequence
from http import HTTPStatus

from service.http.answer_head import CLOSE, Header, head_of
from service.http.asgi import Message, Piece

_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class StreamedAnswer:
    """Turns the messages of one answer into bytes."""

    __slots__ = ("_chunked", "_left_bytes", "_request", "_start")

    def __init__(self, start: Message, request: Message) -> None:
        """`start` is the application's first message; `request` is the scope that it answers."""
        self._start = start
        self._request = request
        self._chunked = False
        # What is left to send of a body whose length was said.
        self._left_bytes: int | None = None

    def head(self, defaults: Sequence[Header], *, keep_alive: bool) -> tuple[bytes, bool]:
        """The bytes before the body, and whether the connection may have another request afterwards.

        `defaults` are headers of every answer; `keep_alive` is whether the request allows for another one.
        """
        status, closes = self._start["status"], False
        headers = [*defaults, *self._start.get("headers", ())]
        for name, value in headers:
            key = name.lower()
            if key == b"content-length":
                self._left_bytes = int(value)
            elif key == b"connection":
                closes = value.lower() == b"close"
        keep_alive = keep_alive and not closes
        if self._left_bytes is None and status not in _BODILESS:
            # Otherwise the end of the connection is the end of the body.
            self._chunked = self._request["http_version"] == "1.1"
            keep_alive = keep_alive and self._chunked
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
        if not keep_alive and not closes:
            headers.append(CLOSE)
        return head_of(status, headers), keep_alive

    def body(self, piece: Piece, *, more: bool) -> list[Piece]:
        """The bytes of a piece of the body; `more` says whether others follow.

        Raises:
            RuntimeError: the body is longer than its Content-Length, or ends before it.
        """
        if self._request["method"] == "HEAD":
            return []
        if not self._chunked:
            self._account(len(piece), more=more)
            return [piece]
        pieces: list[Piece] = [b"%x\r\n" % len(piece), piece, b"\r\n"] if piece else []
        if not more:
            pieces.append(b"0\r\n\r\n")
        return pieces

    def _account(self, size: int, *, more: bool) -> None:
        if self._left_bytes is None:
            return
        self._left_bytes -= size
        if self._left_bytes < 0 or (self._left_bytes and not more):
            raise RuntimeError("the body of an answer is not as long as its Content-Length.")
