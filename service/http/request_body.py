"""The body of an inference request: what its headers say of it, and reading it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from service.batching.queue import DepartedError
from service.errors import BadRequestError, ContentCodingError, TooLargeError
from service.http.asgi import Receive
from service.http.coding_threads import in_coding_thread
from service.http.compression import CODINGS, decompressed
from service.http.exchange import Exchange
from service.protocol import Buffer

_JSON_BYTES = b"inference-header-content-length"

# Larger ones are compressed and unpacked in a thread: the event loop has others to serve.
INLINE_BYTES = 1 << 16


# Not frozen: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True)
class BodyHeaders:
    """What the headers of a request say of its body, checked."""

    # Its bytes as they come; None where they are counted only while it is read.
    length: int | None
    # How it is compressed; None where it is not.
    coding: bytes | None
    # How much of it is JSON once it is unpacked; None is all of it, 0 none.
    json_bytes: int | None
    # The value of Accept-Encoding; empty where there is none.
    accept_encoding: bytes

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], max_bytes: int) -> Self:
        """Reads the headers of a request whose body may have `max_bytes`.

        Raises:
            TooLargeError: Content-Length is over the limit.
            ContentCodingError: it is compressed in a way that nobody here reads.
            BadRequestError: a header is no number.
        """
        found = dict(headers)
        length = _whole(found.get(b"content-length"), "Content-Length")
        if length is not None and length > max_bytes:
            raise too_large(f"{length} bytes", max_bytes)
        return cls(
            length=length,
            coding=_coding(found[b"content-encoding"]) if b"content-encoding" in found else None,
            json_bytes=_whole(found.get(_JSON_BYTES), "Inference-Header-Content-Length"),
            accept_encoding=found.get(b"accept-encoding", b""),
        )


async def read_body(headers: BodyHeaders, receive: Receive, max_bytes: int) -> Buffer:
    """The whole body, unpacked; at most `max_bytes` before and after.

    Raises:
        TooLargeError: it is over the limit.
        BadRequestError: it is not what its Content-Encoding says.
        DepartedError: the client left before its end.
    """
    body = await _whole_body(headers, receive, max_bytes)
    if headers.coding is None:
        return body
    if len(body) <= INLINE_BYTES:
        # Nothing much can come of so few bytes: deflate makes at most a thousand times as many.
        return decompressed(body, headers.coding, max_bytes)
    return await in_coding_thread(decompressed, body, headers.coding, max_bytes)


async def _whole_body(headers: BodyHeaders, receive: Receive, max_bytes: int) -> Buffer:
    """The body as it came; read from the socket into one buffer where its length is known."""
    exchange = getattr(receive, "__self__", None)
    if headers.length is None or not isinstance(exchange, Exchange):
        return await _received(receive, max_bytes)
    body = await exchange.read_whole(headers.length)
    if body is None:
        raise DepartedError
    return body


async def _received(receive: Receive, max_bytes: int) -> bytes:
    """The body as the ASGI specification has it, in pieces that are joined once."""
    message = await receive()
    chunks: list[bytes] = [message.get("body", b"")]
    size = len(chunks[0])
    while message.get("more_body", False):
        if size > max_bytes:
            raise too_large(f"more than {max_bytes} bytes", max_bytes)
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if message["type"] == "http.disconnect":
        raise DepartedError
    if size > max_bytes:
        raise too_large(f"{size} bytes", max_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(seen: str, max_bytes: int) -> TooLargeError:
    """The error for a body that has `seen`."""
    return TooLargeError(
        f"the body has {seen} and may have {max_bytes}; "
        "send fewer rows in a request, or raise OCTET_MAX_BODY_BYTES."
    )


def _coding(value: bytes) -> bytes | None:
    coding = value.strip().lower()
    if coding in (b"", b"identity"):
        return None
    if coding not in CODINGS:
        raise ContentCodingError(
            f"the body has Content-Encoding {_text(coding)}, and only gzip and deflate are read; "
            "send it as one of them, or as it is."
        )
    return coding


def _whole(value: bytes | None, name: str) -> int | None:
    if value is None:
        return None
    # Longer numbers than any length; Python refuses to read numbers without end.
    if not value.isdigit() or len(value) > 18:
        raise BadRequestError(f"the header {name} is {_text(value)}; send a number of bytes.")
    return int(value)


def _text(value: bytes) -> str:
    return value.decode("latin-1")[:80]
