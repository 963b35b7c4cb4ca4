"""The name that a request has in answers and in log lines: its client's own, or one that is made here."""

import contextvars
import itertools
import os
import re
from collections.abc import Iterable

HEADER = b"x-request-id"

# What can neither break a log line apart nor swell it.
_SANE = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")
# Of this process, so that no two servers make the same names; a counter costs a tenth of a UUID.
_PREFIX = os.urandom(8).hex().encode()
_numbers = itertools.count(1)

_current: contextvars.ContextVar[bytes] = contextvars.ContextVar("octet_request_id", default=b"")


def begin(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Names the request with these headers for the rest of the current context, and returns the name."""
    name = dict(headers).get(HEADER)
    if name is None or not _SANE.fullmatch(name):
        name = b"%b-%x" % (_PREFIX, next(_numbers))
    _current.set(name)
    return name


def current() -> bytes:
    """The name of the request that this code runs for; empty outside of requests."""
    return _current.get()
