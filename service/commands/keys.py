"""`octet keys`: makes, shows, limits and revokes API keys in the catalog, beside a running octet or before it."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from socket import gethostname
from typing import Any

import pydantic
from rich.table import Table

from service.access.audit import Action, key_changed
from service.access.key_records import KeyRecords
from service.access.keys import Key, Quotas, new_key
from service.access.scopes import Scope
from service.catalog.catalog import Catalog
from service.commands.consoles import errors, results, say
from service.errors import BadRequestError
from service.monitoring.logs import configure_logging
from service.processes.supervisor import make_home
from service.settings import Settings

_DAY_S = 24 * 3600


def create(name: str, scopes: Sequence[Scope], quotas: Quotas, *, expires_in_days: int | None) -> None:
    """Makes a key and prints it to standard output, alone.

    Raises:
        BadRequestError: the name cannot be used.
        CatalogUnavailableError: the database does not answer.
    """
    expires_at = None if expires_in_days is None else time.time() + expires_in_days * _DAY_S
    text, key = new_key(name, scopes, quotas, expires_at=expires_at)
    with _records() as records:
        records.add(key)
    key_changed(Action.CREATE_KEY, key, by=_whoever())
    results().file.write(f"{text}\n")
    say(errors(), f"That is key {key.id}. Keep it now: octet does not, and never shows it again.")


def show(*, as_json: bool) -> None:
    """Prints all keys.

    Raises:
        CatalogUnavailableError: the database does not answer.
    """
    with _records() as records:
        keys = records.all()
    now, out = time.time(), results()
    if as_json:
        out.file.write(json.dumps([_described(key, now) for key in keys], indent=1) + "\n")
        return
    table = Table(
        *("id", "name", "scopes", "state", "created", "expires", "requests/s", "builds", "bytes"),
        box=None,
        pad_edge=False,
    )
    for key in keys:
        table.add_row(*_cells(key, now))
    out.print(table)


def revoke(key_id: str) -> None:
    """Calls a key in.

    Raises:
        NotFoundError: no such key.
        CatalogUnavailableError: the database does not answer.
    """
    with _records() as records:
        key, is_new = records.revoke(key_id)
    if is_new:
        key_changed(Action.REVOKE_KEY, key, by=_whoever())
    since = "and is refused within 2 s" if is_new else f"since {_day(key.revoked_at)}"
    say(errors(), f"Key {key.id} ({key.name}) is revoked {since}.")


def limit(key_id: str, changes: Mapping[str, float | None]) -> None:
    """Changes the quotas that `changes` names; None is no limit.

    Raises:
        BadRequestError: it names none.
        NotFoundError: no such key.
        CatalogUnavailableError: the database does not answer.
    """
    if not changes:
        raise BadRequestError(
            "no quota was named; say --requests-per-second, --max-builds or --max-bytes, with 0 for no limit."
        )
    with _records() as records:
        key = records.limit(key_id, **changes)
    key_changed(Action.LIMIT_KEY, key, by=_whoever())


@contextlib.contextmanager
def _records() -> Iterator[KeyRecords]:
    """The keys of the catalog that the environment names."""
    settings = Settings.load()
    configure_logging("keys")
    if not settings.shared:
        make_home(settings)
    catalog = Catalog(settings.catalog_url)
    try:
        yield KeyRecords(catalog)
    finally:
        catalog.close()


def _whoever() -> str:
    # By number: in a container the user has no name.
    return f"octet keys, user {os.getuid()} on {gethostname()}"


def _described(key: Key, now: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "state": key.state(now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "quotas": asdict(key.quotas),
    }


def _cells(key: Key, now: float) -> list[str]:
    quotas = key.quotas
    return [
        key.id,
        key.name,
        " ".join(sorted(key.scopes)),
        key.state(now),
        _day(key.created_at),
        _day(key.expires_at),
        "" if quotas.requests_per_s is None else f"{quotas.requests_per_s:g}",
        "" if quotas.max_builds is None else str(quotas.max_builds),
        "" if quotas.max_bytes is None else pydantic.ByteSize(quotas.max_bytes).human_readable(decimal=True),
    ]


def _day(at: float | None) -> str:
    """UTC; empty for never."""
    return "" if at is None else time.strftime("%Y-%m-%d", time.gmtime(at))
