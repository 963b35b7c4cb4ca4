from collections.abc import Iterator
from pathlib import Path

import pytest

from service.catalog.catalog import Catalog
from tests.unit.service.followed import Loader


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield catalog
    catalog.close()


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(tmp_path)
