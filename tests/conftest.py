from collections.abc import Iterator

import pytest

from tests.databases import PostgreSQL, postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """One for all tests of a run; each takes a database of its own."""
    with postgresql() as server:
        yield server
