"""`octet migrate` on a PostgreSQL that several machines come to at once."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.catalog.migration import HEAD, alone
from service.commands.migrate import run
from service.settings import Settings
from tests.databases import PostgreSQL, opened

DONE = f"octet's tables are at revision {HEAD}"


@pytest.fixture
def settings(tmp_path: Path, postgresql_server: PostgreSQL) -> Settings:
    """Of a fleet whose database is empty."""
    url = postgresql_server.new_database()
    return Settings(home=tmp_path, database_url=url, store_url="s3://bucket")


def schemas(settings: Settings) -> set[str]:
    """Those that have tables of octet's, or of its queue."""
    with opened(settings.catalog_url) as engine:
        seen = sa.inspect(engine)
        return {schema for schema in seen.get_schema_names() if seen.get_table_names(schema)} & {
            "public",
            "dbos",
        }


def start(settings: Settings, said: list[str]) -> threading.Thread:
    # One that waits for ever must not keep the tests from ending.
    thread = threading.Thread(target=run, args=(settings,), kwargs={"say": said.append}, daemon=True)
    thread.start()
    return thread


def test_who_comes_while_another_one_migrates_waits_for_it(settings: Settings) -> None:
    said: list[str] = []
    with opened(settings.catalog_url) as engine, alone(engine):
        waiting = start(settings, said)
        waiting.join(1.0)
        assert waiting.is_alive()
        assert schemas(settings) == set()
    waiting.join(60.0)
    assert said == [DONE]
    assert schemas(settings) == {"public", "dbos"}


def test_all_that_come_at_once_find_it_done(settings: Settings) -> None:
    said: list[str] = []
    threads = [start(settings, said) for _ in range(4)]
    for thread in threads:
        thread.join(60.0)
    assert said == [DONE] * 4
    assert schemas(settings) == {"public", "dbos"}
