"""The head of an answer: its status line and its headers."""

from collections.abc import Sequence
from http import HTTPStatus

Header = tuple[bytes, bytes]

CLOSE = (b"connection", b"close")

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def head_of(status: int, headers: Sequence[Header]) -> bytes:
    """The bytes before a body.

    Raises:
        RuntimeError: a header has more than one line, and would be taken for several, or for a body.
    """
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    head = b"".join([line, *[b"%b: %b\r\n" % header for header in headers], b"\r\n"])
    if head.count(b"\n") != len(headers) + 2:
        raise RuntimeError(f"a header of an answer has more than one line: {headers}")
    return head
