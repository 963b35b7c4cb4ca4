"""What SQLite is told, so that a catalog in a file is durable and lets readers pass."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.options import BuildOptions
from service.catalog.catalog import Catalog, NewBuild
from service.catalog.schema import translated
from service.errors import CatalogUnavailableError, StorageFullError
from tests.databases import PostgreSQL, opened
from tests.disks import filled


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


def new() -> NewBuild:
    return NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={})


def test_commits_survive_power_cuts(catalog: Catalog) -> None:
    with catalog._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_readers_are_not_kept_waiting_by_a_writer(catalog: Catalog, tmp_path: Path) -> None:
    build, _ = catalog.accept(new())
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert catalog.build(build.id) == build
    assert catalog.revision() == 0
    writer.execute("ROLLBACK")
    writer.close()


def test_on_a_full_disk_changes_are_refused_and_what_is_there_is_read(small: Path) -> None:
    catalog = Catalog(f"sqlite:///{small / 'catalog.db'}")
    build, _ = catalog.accept(new())
    with filled(small):
        with pytest.raises(StorageFullError, match=r"the database has no room left .*; free some space"):
            catalog.accept(new(), force=True)
        assert catalog.build(build.id) == build
        assert len(catalog.builds()) == 1
    catalog.accept(new(), force=True)
    catalog.close()


def test_on_a_full_disk_a_catalog_that_cannot_even_be_opened_is_full_too(small: Path) -> None:
    url = f"sqlite:///{small / 'catalog.db'}"
    catalog = Catalog(url)
    build, _ = catalog.accept(new())
    catalog.close()
    with filled(small), pytest.raises(StorageFullError, match="the database has no room left"):
        Catalog(url)
    catalog = Catalog(url)
    assert catalog.build(build.id) == build
    catalog.close()


def test_no_room_under_postgresql_is_told_from_a_database_that_is_away(
    postgresql_server: PostgreSQL,
) -> None:
    full = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
    with opened(postgresql_server.new_database()) as engine, engine.connect() as connection:
        with pytest.raises(StorageFullError, match=r"has no room left \(could not extend file"), translated():
            connection.exec_driver_sql(full)
        connection.rollback()
        with pytest.raises(CatalogUnavailableError), translated():
            connection.exec_driver_sql(full.replace("53100", "53300"))
