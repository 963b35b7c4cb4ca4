"""The trail of what was changed, and by whom: a line in the log for every change, from the logger `octet.audit`.

The log is the trail; nothing of it is kept in the database.
"""

import contextlib
import enum
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.access.caller import Caller, caller_of
from service.access.keys import Key, Quotas

if TYPE_CHECKING:
    # Workers sweep too, and answer no requests.
    from fastapi import Request

LOGGER = "octet.audit"
logger = logging.getLogger(LOGGER)

DONE = "done"
UNCHANGED = "unchanged"
"""Everything was as wanted already."""
_BROKEN = "server.error"
_SWEEP = Caller(key_id=None, name="sweep", scopes=frozenset(), quotas=Quotas())
"""Whoever keeps to the rules of retention."""


class Action(enum.StrEnum):
    """What is changed."""

    UPLOAD = "build.upload"
    """A build was accepted, or not."""
    CANCEL = "build.cancel"
    """A build was called off."""
    FORGET = "build.forget"
    """An ended build without a version left the list."""
    DEFAULT = "model.default"
    """Another version answers: a promotion or a roll-back."""
    DELETE_MODEL = "model.delete"
    """A model is gone with all its versions."""
    DELETE_VERSION = "version.delete"
    """A version is gone."""
    LOAD = "model.load"
    """A model was brought into a server's memory."""
    UNLOAD = "model.unload"
    """A model was taken out of a server's memory."""
    CREATE_KEY = "key.create"
    """There is another key."""
    REVOKE_KEY = "key.revoke"
    """A key was called in."""
    LIMIT_KEY = "key.limit"
    """A key has other quotas."""


@dataclass(kw_only=True)
class Change:
    """A change that is being made; whoever makes it says what is known only then."""

    action: Action
    # Whom it concerns.
    model: str | None = None
    version: int | None = None
    build: str | None = None
    # What came of it: `done`, `unchanged`, or the code of the error that stopped it.
    outcome: str = DONE


@contextlib.contextmanager
def audited(request: "Request", action: Action, *, model: str | None = None) -> Iterator[Change]:
    """Writes the line for a change that a request makes inside of the block, whatever comes of it."""
    change = Change(action=action, model=model)
    try:
        yield change
    except BaseException as error:
        change.outcome = getattr(error, "code", _BROKEN)
        raise
    finally:
        client = None if request.client is None else request.client.host
        _write(change, caller_of(request.scope), client)


def swept(
    action: Action, *, model: str | None = None, version: int | None = None, build: str | None = None
) -> None:
    """Writes the line for what a sweep has removed, as the settings of retention say."""
    _write(Change(action=action, model=model, version=version, build=build), _SWEEP, None)


def key_changed(action: Action, key: Key, *, by: str) -> None:
    """Writes the line for a change of a key."""
    extra = {"action": action.value, "outcome": DONE, "subject": key.id, "key_name": by}
    logger.info("%s %s (%s) by %s", action, key.id, key.name, by, extra=extra)


def _write(change: Change, caller: Caller, client: str | None) -> None:
    extra: dict[str, Any] = {
        "action": change.action.value,
        "outcome": change.outcome,
        "key": caller.key_id,
        "key_name": caller.name,
        "client": client,
        "model": change.model,
        "version": change.version,
        "build": change.build,
    }
    logger.info("%s by %s: %s", change.action, caller.name, change.outcome, extra=extra)
