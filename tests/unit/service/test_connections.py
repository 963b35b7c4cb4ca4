"""What a pool of connections to PostgreSQL costs, and what it does about those that have ended, on a real one."""

import time

import pytest
import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.schema import create_engine
from tests.databases import opened


def end_all(url: str) -> None:
    """As a restart of the database does."""
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid != pg_backend_pid()"
    with opened(url) as engine, engine.connect() as connection:
        assert connection.execute(sa.text(ends), {"name": sa.make_url(url).database}).all()
    # What a server says of an end may take a moment.
    time.sleep(0.2)


def transactions(url: str) -> int:
    """As the database counts them; it reports a second late."""
    time.sleep(1.5)
    count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = :name"
    engine = create_engine(str(sa.make_url(url).set(database="postgres")))
    with engine.connect() as connection:
        counted = connection.execute(sa.text(count), {"name": sa.make_url(url).database}).scalar_one()
    engine.dispose()
    return int(counted)


pytestmark = pytest.mark.parametrize("any_url", ["postgresql"], indirect=True)


def test_a_look_at_the_revision_is_one_transaction(any_url: str, any_catalog: Catalog) -> None:
    any_catalog.revision()
    before = transactions(any_url)
    for _ in range(100):
        any_catalog.revision()
    time.sleep(1.5)
    any_catalog.revision()
    # Some that the database runs for itself.
    assert transactions(any_url) - before < 110


def test_connections_that_the_database_has_ended_are_not_handed_out(
    any_url: str, any_catalog: Catalog
) -> None:
    for _ in range(3):
        with any_catalog.look() as one, any_catalog.look() as another:
            one.execute(sa.text("SELECT 1"))
            another.execute(sa.text("SELECT 1"))
        end_all(any_url)
        with any_catalog.look() as one, any_catalog.change() as another:
            assert one.execute(sa.text("SELECT 1")).scalar_one() == 1
            assert another.execute(sa.text("SELECT 1")).scalar_one() == 1
        end_all(any_url)
        assert any_catalog.revision() == 0


def test_connections_are_used_again(any_url: str, any_catalog: Catalog) -> None:
    def session() -> int:
        with any_catalog.look() as looking:
            return int(looking.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())

    assert len({session() for _ in range(10)}) == 1
