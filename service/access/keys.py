"""API keys: how one is made, and what is kept of it.

A key reads `octet_<id>_<secret>`. The id names it in lists, logs and quotas; the secret is 256 random bits. Only a
SHA-256 of the whole is kept. Slow hashes are for passwords, which people choose and others can guess; nobody guesses
256 random bits, however fast a guess is, and this check stands in the way of every request.
"""

import enum
import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from service.access.scopes import Scope
from service.errors import BadRequestError

_ID_BYTES = 6
_SECRET_BYTES = 32
_HANDLE = slice(len("octet_"), len("octet_") + 2 * _ID_BYTES)
# Shown in tables, log lines and errors as it is.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,62}")
_BOUNDS = {"requests_per_s": (1e-3, 1e9), "max_builds": (1, 1e6), "max_bytes": (1, 1e18)}


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """What a key may use up; None is no limit."""

    # Of each server, which counts for itself.
    requests_per_s: float | None = None
    # Queued and running ones together.
    max_builds: int | None = None
    # Of the files that the key's versions and unfinished builds need.
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that are no limits, or that no database keeps.

        Raises:
            BadRequestError: there is one.
        """
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise BadRequestError(
                    f"the quota {name} cannot be {value}; use {least:g} to {most:g}, or none at all."
                )


class KeyState(enum.StrEnum):
    """Whether a key counts."""

    ACTIVE = "active"
    """It does."""
    EXPIRED = "expired"
    """Its time is over."""
    REVOKED = "revoked"
    """Somebody called it in; for good."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """All that is known of a key; the secret is not."""

    id: str
    # What people call it; several may have the same one.
    name: str
    scopes: frozenset[Scope]
    # SHA-256 of the whole key.
    digest: bytes
    quotas: Quotas
    # Seconds since the epoch.
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def state(self, now: float) -> KeyState:
        """What it is at `now`, in seconds since the epoch."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


def new_key(
    name: str, scopes: Iterable[Scope], quotas: Quotas, *, expires_at: float | None = None
) -> tuple[str, Key]:
    """Makes a key; gives its text, which is kept nowhere, and what is to be kept.

    Raises:
        BadRequestError: the name cannot be used, or there is no scope.
    """
    if not _NAME.fullmatch(name):
        raise BadRequestError(
            f"{name[:80]!r} cannot be a key's name; use 1 to 63 letters, digits, spaces and . _ @ / - "
            "and start with a letter or a digit."
        )
    granted = frozenset(scopes)
    if not granted:
        raise BadRequestError(f"key {name!r} has no scope; give it one or more of {', '.join(Scope)}.")
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"octet_{key_id}_{secrets.token_hex(_SECRET_BYTES)}"
    key = Key(
        id=key_id,
        name=name,
        scopes=granted,
        digest=digest_of(text.encode()),
        quotas=quotas,
        created_at=time.time(),
        expires_at=expires_at,
        revoked_at=None,
    )
    return text, key


def handle_of(text: bytes) -> bytes:
    """The place of the id in what was sent as a key, whatever that is."""
    return text[_HANDLE]


def digest_of(text: bytes) -> bytes:
    """What is kept of a key, and compared."""
    return hashlib.sha256(text).digest()
