from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.databases import PostgreSQL, postgresql

# What of tests/integration starts no service.
_NO_SERVICE = ("tests/integration/engines/", "tests/integration/bindings/")


class OneMachine(LoadScopeScheduling):  # type: ignore[misc] # has no types
    """What two processes do at a time: one has all tests that start services, the other all the rest.

    Two services beside each other on two cores take longer than tests wait for them. Files stay whole, since tests of
    one share what they set up.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/integration/") and not nodeid.startswith(_NO_SERVICE):
            return "services"
        return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)  # there is none where xdist is off: pytest -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneMachine:
    """Who does what under `make test`."""
    return OneMachine(config, log)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """One for all tests of a run; each takes a database of its own."""
    with postgresql() as server:
        yield server
