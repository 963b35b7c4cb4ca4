"""The name that a request has in answers and in log lines: its client's own, or one that is made here."""

import contextvars
import itertools
import os
import re
from collections.abc import MutableMapping
from typing import Any

HEADER = b"x-request-id"
_SCOPE = "octet.request_id"

# What can neither break a log line apart nor swell it.
_SANE = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")
# Of this process, so that no two servers make the same names; a counter costs a tenth of a UUID.
_PREFIX = os.urandom(8).hex().encode()
_numbers = itertools.count(1)

_current: contextvars.ContextVar[bytes] = contextvars.ContextVar("octet_request_id", default=b"")


def begin(scope: MutableMapping[str, Any]) -> bytes:
    """Names the request of this scope for the rest of the current context, and returns the name."""
    name = of(scope)
    _current.set(name)
    return name


def of(scope: MutableMapping[str, Any]) -> bytes:
    """The name of the request of this scope, the same one each time."""
    known: bytes | None = scope.get(_SCOPE)
    if known is not None:
        return known
    name = dict(scope.get("headers", ())).get(HEADER)
    if name is None or not _SANE.fullmatch(name):
        name = b"%b-%x" % (_PREFIX, next(_numbers))
    scope[_SCOPE] = name
    return name


def current() -> bytes:
    """The name of the request that this code runs for; empty outside of requests."""
    return _current.get()
