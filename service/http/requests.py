"""Reads requests off a connection's bytes with llhttp, and bounds what is no body of theirs."""

import asyncio
import urllib.parse
from typing import Any, ClassVar, Protocol

import httptools

from service.errors import BadRequestError, HeadTooLargeError, ServiceError
from service.http.answer_head import Header
from service.http.asgi import Message

# What the scopes of all requests have in common.
_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "scheme": "http",
    "root_path": "",
}
NOBODY: Message = {"method": "GET", "http_version": "1.1"}
"""What was not understood well enough to be a request is answered as this one."""

# A parser is made in microseconds and takes more memory than the rest of an idle connection: it goes after so long a
# rest, ...
PARSER_REST_S = 0.1
# ... and at once while there are so many.
MANY_PARSERS = 256

_NO_HEADERS: list[Header] = []
# So much is parsed before the question whether a request waits already. A client may send hundreds of them at once:
# parsed together, they would hold up all other clients, and each would take the memory of a request.
_SLICE_BYTES = 1 << 12
_HEAD_END = b"\r\n\r\n"
# Of a Content-Length: more than any body has.
_MOST_DIGITS = 18


class Receiver(Protocol):
    """Whom a parser tells what it has read."""

    def on_message_begin(self) -> None:
        """The first byte of a head."""

    def on_head(self, scope: Message, *, keep_alive: bool, expects_continue: bool) -> None:
        """A whole head: its ASGI scope, and what it says of the connection and of its body."""

    def on_body(self, body: bytes, left: int) -> None:
        """A piece of the body; `left` bytes of it are still to come, as far as its length was said."""

    def on_message_complete(self) -> None:
        """The end of the request."""


class RequestParser:
    """Parses the requests of one connection.

    llhttp keeps what it has not understood to its end: a header name, a value, the extension of a chunk, what
    follows the last chunk. It has no limits for them; this has one for all.
    """

    __slots__ = (
        "_client", "_expects_continue", "_headers", "_llhttp", "_method", "_most_bytes", "_receiver", "_server",
        "_upgrades", "_url", "body_bytes", "mute_bytes", "reads_head",
    )  # fmt: skip

    alive: ClassVar[int] = 0
    """How many there are that were not closed."""

    def __init__(self, receiver: Receiver, transport: asyncio.BaseTransport, *, most_bytes: int) -> None:
        """`transport` knows the ends of the connection; `most_bytes` bounds a head."""
        self._receiver = receiver
        self._server = (transport.get_extra_info("sockname") or ("", None))[:2]
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self._most_bytes = most_bytes
        # Received since there last was something to tell.
        self.mute_bytes = 0
        # What is still to come of a body whose length was said.
        self.body_bytes = 0
        # Whether part of a head is there.
        self.reads_head = False
        self._upgrades = False
        self._method = self._url = b""
        self._headers: list[Header] = []
        self._expects_continue = False
        self._llhttp: Any = httptools.HttpRequestParser(self)
        RequestParser.alive += 1

    def feed(self, data: bytes | memoryview) -> None:
        """Reads bytes and tells the receiver what they complete.

        Raises:
            BadRequestError: they are not HTTP/1.
            HeadTooLargeError: a head, or what follows a chunked body, is over its limit.
        """
        self.mute_bytes += len(data)
        left = data
        while left:
            try:
                self._llhttp.feed_data(left)
            except httptools.HttpParserUpgrade as upgrade:
                left = self._without_upgrade() + bytes(memoryview(left)[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                raise _translated(error) from error
            else:
                break
        if self.mute_bytes > self._most_bytes:
            raise self._head_too_large()

    def split(self, data: bytes | memoryview) -> tuple[bytes | memoryview, bytes | memoryview]:
        """What of `data` to feed at once, and the rest; a body goes whole, in one piece where all of it is there."""
        size = _SLICE_BYTES
        if len(data) > size and not self.body_bytes:
            size = bytes(data[:size]).find(_HEAD_END) + len(_HEAD_END)
            if size < len(_HEAD_END):
                size = _SLICE_BYTES
        size = max(size, self.body_bytes)
        return (data, b"") if len(data) <= size else (data[:size], memoryview(data)[size:])

    def body_was_read(self) -> None:
        """Takes the news that somebody else read the rest of the body off the connection."""
        self.body_bytes = 0
        # llhttp cannot skip; a new one waits for a head.
        self._llhttp = httptools.HttpRequestParser(self)

    def close(self) -> None:
        """Parts with llhttp's parser, which refers back here: only the garbage collector would part them. Once."""
        self._llhttp = None
        RequestParser.alive -= 1

    def on_message_begin(self) -> None:
        self._url, self._headers, self._expects_continue = b"", [], False
        self.body_bytes = 0
        self.reads_head = True
        self._receiver.on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those that come after a body mean nothing here.
        if self.reads_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = True
            elif name == b"content-length":
                # llhttp leaves the spaces behind it.
                value = value.strip()
                self.body_bytes = _length(value)
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.mute_bytes > self._most_bytes:
            self._check_head()
        self.mute_bytes, self.reads_head = 0, False
        self._method, version = self._llhttp.get_method(), self._llhttp.get_http_version()
        if self._llhttp.should_upgrade():
            if self._method == b"CONNECT":
                raise BadRequestError("this server is no proxy; send the request itself instead of CONNECT.")
            self._upgrades = True
            return
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):
            path, query = _parsed(self._url)
        text = path.decode("latin-1")
        scope = {
            **_SCOPE,
            "server": self._server,
            "client": self._client,
            "http_version": version,
            "method": self._method.decode(),
            "path": urllib.parse.unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": self._headers,
        }
        # Nobody here needs them any more, and an idle connection shall not keep them.
        self._headers = _NO_HEADERS
        keep_alive = version == "1.1" and self._llhttp.should_keep_alive()
        # RFC 9110, 10.1.1: HTTP/1.0 knows no such expectation.
        expects_continue = self._expects_continue and version == "1.1"
        self._receiver.on_head(scope, keep_alive=keep_alive, expects_continue=expects_continue)

    def on_body(self, body: bytes) -> None:
        self.mute_bytes = 0
        self.body_bytes -= len(body)
        self._receiver.on_body(body, max(0, self.body_bytes))

    def on_message_complete(self) -> None:
        if not self._upgrades:
            self._receiver.on_message_complete()

    def _without_upgrade(self) -> bytes:
        """The head of a request for another protocol, which it does not get, without the words that ask for it.

        llhttp takes whatever follows such a head, its body too, for the other protocol; Java's client asks for
        HTTP/2 with every first request.
        """
        self._upgrades = False
        self._llhttp = httptools.HttpRequestParser(self)
        kept = (header for header in self._headers if header[0] not in (b"upgrade", b"connection"))
        lines = [b"%b %b HTTP/1.1" % (self._method, self._url), *(b"%b: %b" % header for header in kept)]
        return b"\r\n".join([*lines, b"", b""])

    def _check_head(self) -> None:
        """Measures the head itself, where what came with it may have been too much."""
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > self._most_bytes:
            raise self._head_too_large()

    def _head_too_large(self) -> HeadTooLargeError:
        return HeadTooLargeError(
            f"the head of the request has more than {self._most_bytes} bytes; send fewer or shorter headers."
        )


def _length(value: bytes) -> int:
    """Bytes of a body by its Content-Length, which llhttp has read.

    llhttp takes any number of leading zeros, of which Python reads no more than some thousands.
    """
    if len(value) > _MOST_DIGITS:
        raise BadRequestError(
            f"the header Content-Length has {len(value)} digits; send the number of bytes, without leading zeros."
        )
    return int(value) if value.isdigit() else 0


def _translated(error: Exception) -> Exception:
    """The error to raise for one of llhttp's; one that a callback raised is its own."""
    cause: Any = error.__context__
    if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
        return cause if isinstance(cause, ServiceError) else error
    return BadRequestError(f"what was sent is not HTTP/1.1 ({error}); send a request.")


def _parsed(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target that is a whole URL; what is none is a path that nothing is at."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return url, b""
    return parsed.path or b"/", parsed.query or b""
