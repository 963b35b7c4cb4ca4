"""The keys in the catalog."""

import time
from dataclasses import replace

import sqlalchemy as sa

from service.access.keys import Key, Quotas
from service.access.scopes import Scope
from service.catalog import rows
from service.catalog.catalog import Catalog
from service.catalog.schema import KeyRow
from service.errors import NotFoundError


class KeyRecords:
    """The record that all servers share. Keys stay in it when they are revoked.

    Every change raises the catalog's revision, by which servers notice. Every method raises CatalogUnavailableError
    where the database does not answer.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def all(self) -> list[Key]:
        """Every key there ever was, the oldest first."""
        with self._catalog.look() as session:
            return [_key(row) for row in session.scalars(sa.select(KeyRow).order_by(KeyRow.created_at))]

    def add(self, key: Key) -> None:
        """Keeps a new key."""
        with self._catalog.turn() as session:
            session.add(
                KeyRow(
                    id=key.id,
                    name=key.name,
                    scopes=" ".join(sorted(key.scopes)),
                    digest=key.digest.hex(),
                    created_at=key.created_at,
                    expires_at=key.expires_at,
                    revoked_at=key.revoked_at,
                    **_columns(key.quotas),
                )
            )
            rows.bump_revision(session)

    def revoke(self, key_id: str) -> tuple[Key, bool]:
        """Calls a key in; gives it, and whether that was new.

        Raises:
            NotFoundError: no such key.
        """
        with self._catalog.turn() as session:
            row = _find(session, key_id)
            is_new = row.revoked_at is None
            if is_new:
                row.revoked_at = time.time()
                rows.bump_revision(session)
            return _key(row), is_new

    def limit(self, key_id: str, **changes: float | None) -> Key:
        """Gives a key other quotas, those that are named.

        Raises:
            NotFoundError: no such key.
        """
        with self._catalog.turn() as session:
            row = _find(session, key_id)
            quotas = replace(_quotas(row), **changes)  # type: ignore[arg-type] # fields of Quotas
            for name, value in _columns(quotas).items():
                setattr(row, name, value)
            rows.bump_revision(session)
            return _key(row)


def _find(session: sa.orm.Session, key_id: str) -> KeyRow:
    row = session.get(KeyRow, key_id, with_for_update=True)
    if row is None:
        raise NotFoundError(f"there is no key {key_id[:80]!r}; octet keys list shows those that there are.")
    return row


def _columns(quotas: Quotas) -> dict[str, float | None]:
    return {
        "requests_per_s": quotas.requests_per_s,
        "max_builds": quotas.max_builds,
        "max_bytes": quotas.max_bytes,
    }


def _quotas(row: KeyRow) -> Quotas:
    return Quotas(requests_per_s=row.requests_per_s, max_builds=row.max_builds, max_bytes=row.max_bytes)


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        # One of a later release means nothing to this one.
        scopes=frozenset(Scope(name) for name in row.scopes.split() if name in set(Scope)),
        digest=bytes.fromhex(row.digest),
        quotas=_quotas(row),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
