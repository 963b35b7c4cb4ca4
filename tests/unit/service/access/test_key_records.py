from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.access.key_records import KeyRecords
from service.access.keys import Key, Quotas, new_key
from service.access.scopes import Scope
from service.catalog.catalog import Catalog
from service.errors import BadRequestError, NotFoundError
from tests.databases import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql_server")
        url = server.new_catalog()
    opened = Catalog(url)
    yield opened
    opened.close()


def added(catalog: Catalog, **quotas: float) -> tuple[str, Key]:
    text, key = new_key("ci", [Scope.INFER, Scope.BUILD], Quotas(**quotas), expires_at=2e9)  # type: ignore[arg-type] # by name
    KeyRecords(catalog).add(key)
    return text, key


def test_keys_come_back_as_they_were_and_the_secret_is_nowhere(catalog: Catalog) -> None:
    first, one = added(catalog, requests_per_s=0.5, max_builds=2, max_bytes=1 << 40)
    _, other = added(catalog)
    assert KeyRecords(catalog).all() == [one, other]
    with catalog.look() as session:
        for row in session.execute(sa.text("SELECT * FROM api_keys")):
            assert first.rpartition("_")[2] not in " ".join(map(str, row))


def test_every_change_raises_the_revision(catalog: Catalog) -> None:
    records = KeyRecords(catalog)
    revisions = [catalog.revision()]
    _, key = added(catalog)
    revisions.append(catalog.revision())
    records.limit(key.id, max_builds=1)
    revisions.append(catalog.revision())
    records.revoke(key.id)
    revisions.append(catalog.revision())
    assert revisions == sorted(set(revisions))


def test_revoking_twice_is_revoking_once(catalog: Catalog) -> None:
    records, (_, key) = KeyRecords(catalog), added(catalog)
    revoked, is_new = records.revoke(key.id)
    assert is_new
    assert revoked.revoked_at is not None
    assert records.revoke(key.id) == (revoked, False)
    assert records.all() == [revoked]


def test_quotas_that_are_not_named_stay(catalog: Catalog) -> None:
    records, (_, key) = KeyRecords(catalog), added(catalog, requests_per_s=5, max_builds=2)
    records.limit(key.id, max_builds=None, max_bytes=10)
    assert records.all()[0].quotas == Quotas(requests_per_s=5, max_bytes=10)
    with pytest.raises(BadRequestError):
        records.limit(key.id, max_builds=-1)
    assert records.all()[0].quotas == Quotas(requests_per_s=5, max_bytes=10)


def test_a_key_that_is_not_there_is_named(catalog: Catalog) -> None:
    for change in (KeyRecords(catalog).revoke, KeyRecords(catalog).limit):
        with pytest.raises(NotFoundError, match="there is no key 'nobody'; octet keys list"):
            change("nobody")


def test_a_scope_of_a_later_release_is_none_of_ours(catalog: Catalog) -> None:
    added(catalog)
    with catalog.change() as session:
        session.execute(sa.text("UPDATE api_keys SET scopes = 'infer paint'"))
    assert KeyRecords(catalog).all()[0].scopes == {Scope.INFER}
