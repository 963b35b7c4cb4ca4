from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.databases import PostgreSQL, postgresql


class OneMachine(LoadScopeScheduling):  # type: ignore[misc] # has no types
    """What two processes do at a time: one has all tests that start processes of their own, the other all the rest.

    Two services beside each other on two cores take longer than tests wait for them. Files stay whole, since tests of
    one share what they set up.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "integration" if nodeid.startswith("tests/integration/") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)  # there is none where xdist is off: pytest -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneMachine:
    """Who does what under `make test`."""
    return OneMachine(config, log)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """One for all tests of a run; each takes a database of its own."""
    with postgresql() as server:
        yield server
