"""What SQLite is told, so that a catalog in a file is durable and lets readers pass."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.options import BuildOptions
from service.catalog.catalog import Catalog, NewBuild


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
