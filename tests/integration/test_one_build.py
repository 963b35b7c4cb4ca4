"""`octet worker --once` on PostgreSQL: one build each, whoever dies meanwhile."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.builds.leases import LEASE_S
from tests.databases import PostgreSQL, opened
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet

BUILD_S = 60.0
POLLS_S = 2.5
"""Some polls of the queue."""


@pytest.fixture(scope="module")
def octets(tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgreSQL) -> Iterator[Fleet]:
    """A server alone."""
    with fleet(tmp_path_factory.mktemp("fleet"), postgresql_server) as made:
        made.add_server()
        made.wait_until_ready()
        yield made


@pytest.fixture
def database(octets: Fleet) -> Iterator[sa.Engine]:
    with opened(octets.environment["OCTET_DATABASE_URL"]) as engine:
        yield engine


def upload(octets: Fleet, model: str) -> str:
    return str(octets.servers[0].upload(model, calibration="max").json()["id"])


def state(octets: Fleet, build_id: str) -> str:
    return str(octets.servers[0].build(build_id)["state"])


def given_to(database: sa.Engine, build_id: str) -> tuple[str, str | None]:
    """The queue's word on a build: its state there, and the worker that it was given to."""
    query = sa.text("SELECT status, executor_id FROM dbos.workflow_status WHERE workflow_uuid = :id")
    with database.connect() as connection:
        status, worker = connection.execute(query, {"id": build_id}).one()
        return status, worker


def let_a_lease_pass(database: sa.Engine, dead: Octet) -> None:
    """As if `dead`, and every build, were older by a lease."""
    name = (dead.home / "worker.name").read_text()
    with database.begin() as connection:
        connection.execute(
            sa.text("UPDATE workers SET beat_at = beat_at - :lease WHERE id = :name"),
            {"lease": LEASE_S, "name": name},
        )
        connection.execute(sa.text("UPDATE builds SET created_at = created_at - :lease"), {"lease": LEASE_S})


def test_a_worker_that_is_stopped_before_its_build_says_so(octets: Fleet) -> None:
    worker = octets.add_worker("--once")
    octets.wait((worker.home / "worker.ready").exists, "the worker to take builds", 60)
    (process,) = worker.processes("service.worker")
    os.kill(process, signal.SIGTERM)
    again = f"the worker ended with exit status {os.EX_TEMPFAIL}; it starts again"
    octets.wait(lambda: again in worker.log, "its process to be started again", 10)
    assert worker.stop() == os.EX_TEMPFAIL, worker.log


def test_of_two_builds_one_is_carried_out_and_the_other_is_never_touched(
    octets: Fleet, database: sa.Engine
) -> None:
    first, second = upload(octets, "first"), upload(octets, "second")
    worker = octets.add_worker("--once")
    octets.wait(lambda: state(octets, first) == "running", "the build to begin", 60)
    with database.begin() as connection:
        # The worker's chores wait for this, and so it cannot end: a second build would be begun meanwhile.
        connection.execute(sa.text("LOCK TABLE workers IN EXCLUSIVE MODE"))
        octets.wait(lambda: state(octets, first) == "succeeded", "the build to end", BUILD_S)
        time.sleep(POLLS_S)
        assert given_to(database, second)[0] == "ENQUEUED"
    assert worker.wait() == 0, worker.log
    assert "its build is done" in worker.log
    assert given_to(database, second)[0] == "ENQUEUED"
    assert state(octets, second) == "queued"
    with database.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM workers")) == 0, "nobody waits for its lease"
    octets.servers[0].client.delete(f"/v1/builds/{second}").raise_for_status()
    check_that_no_build_comes(octets, database, cancelled=second)


def check_that_no_build_comes(octets: Fleet, database: sa.Engine, *, cancelled: str) -> None:
    worker = octets.add_worker("--once", "--idle-s", "3")
    assert worker.wait() == 0, worker.log
    assert "octet is ready for builds" in worker.log
    assert "no build came for it" in worker.log
    assert given_to(database, cancelled)[0] == "SUCCESS", "it was in the queue, and is no build to end with"


def test_another_worker_ends_the_build_of_one_that_was_killed(octets: Fleet, database: sa.Engine) -> None:
    build_id = upload(octets, "killed")
    dead = octets.add_worker("--once")
    octets.wait(lambda: state(octets, build_id) == "running", "the build to begin", 60)
    dead.kill()
    octets.wait(lambda: not dead.processes(), "its processes to end", 10)
    assert state(octets, build_id) == "running"
    check_that_another_ends_it(octets, database, dead, build_id)


def check_that_another_ends_it(octets: Fleet, database: sa.Engine, dead: Octet, build_id: str) -> None:
    let_a_lease_pass(database, dead)
    other = octets.add_worker("--once", "--idle-s", "20")
    assert other.wait(BUILD_S) == 0, other.log
    assert state(octets, build_id) == "succeeded", other.log


def test_a_build_whose_worker_died_before_it_claimed_it_is_not_stuck(
    octets: Fleet, database: sa.Engine, tmp_path: Path
) -> None:
    plan = tmp_path / "plan"
    plan.write_text("service worker claim.before\n")
    build_id = upload(octets, "unclaimed")
    dead = octets.add_worker("--once", OCTET_CRASH_PLAN=str(plan))
    octets.wait(lambda: dead.poll() is not None and not dead.processes(), "the worker to die", 60)
    name = (dead.home / "worker.name").read_text()
    assert given_to(database, build_id) == ("PENDING", name)
    with database.connect() as connection:
        query = sa.text("SELECT worker FROM builds WHERE id = :id AND run IS NOT NULL")
        assert connection.execute(query, {"id": build_id}).one() == (None,)
    check_that_another_ends_it(octets, database, dead, build_id)


def test_a_worker_whose_process_ends_in_the_middle_begins_again_and_ends_its_build(
    octets: Fleet, database: sa.Engine, tmp_path: Path
) -> None:
    plan = tmp_path / "plan"
    plan.write_text("process worker claim.taken\n")
    build_id = upload(octets, "restarted")
    worker = octets.add_worker("--once", "--idle-s", "20", OCTET_CRASH_PLAN=str(plan))
    octets.wait(lambda: state(octets, build_id) == "running", "the build to begin", 60)
    with database.begin() as connection:
        # As if another worker had claimed it: this one gives way.
        connection.execute(sa.text("UPDATE builds SET claim = claim + 1 WHERE id = :id"), {"id": build_id})
    assert worker.wait(BUILD_S) == 0, worker.log
    assert state(octets, build_id) == "succeeded"
    assert "the worker ended with SIGKILL" in worker.log
    assert f"the worker ended with exit status {os.EX_TEMPFAIL}" in worker.log
