from collections.abc import Iterator
from pathlib import Path

import pytest

from service.catalog.catalog import Catalog
from tests.databases import PostgreSQL
from tests.disks import small_disk
from tests.unit.service.followed import Loader


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield catalog
    catalog.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a migrated database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'any-catalog.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_catalog()


@pytest.fixture
def any_catalog(any_url: str) -> Iterator[Catalog]:
    """A catalog in each kind of database."""
    catalog = Catalog(any_url)
    yield catalog
    catalog.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, for tests that fill it; their names say `full_disk`."""
    with small_disk(tmp_path / "small", size_kib=4096) as disk:
        yield disk


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(tmp_path)
