"""Who has sent a request."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from service.access.keys import Quotas
from service.access.scopes import EVERYTHING, Scope

_SCOPE = "octet.caller"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A key, or whoever reaches a server that asks for none."""

    # Of the key; None without one.
    key_id: str | None
    # What the key is called, for people.
    name: str
    scopes: frozenset[Scope]
    quotas: Quotas

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything."""
        return Scope.ADMIN in self.scopes


LOCAL = Caller(key_id=None, name="local", scopes=EVERYTHING, quotas=Quotas())
"""Whoever reaches a server on the loopback interface for which there are no keys."""
ANYBODY = Caller(key_id=None, name="no-auth", scopes=EVERYTHING, quotas=Quotas())
"""Whoever reaches a server that was told not to ask for keys."""


def note(scope: MutableMapping[str, Any], caller: Caller) -> None:
    """Writes into a request's ASGI scope who has sent it."""
    scope[_SCOPE] = caller


def is_noted(scope: MutableMapping[str, Any]) -> bool:
    """Whether it says already who has sent the request: the gate has let it in."""
    return _SCOPE in scope


def caller_of(scope: MutableMapping[str, Any]) -> Caller:
    """Who has sent the request of this ASGI scope, to a call that is not open to all: the gate has noted it."""
    caller: Caller = scope[_SCOPE]
    return caller
