"""Two servers and two workers on one PostgreSQL and one S3 server, while everything of them dies in turn.

A longer one, with two minutes of kills at random, is `loadtests/chaos.py`.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.databases import PostgreSQL
from tests.integration.chaos import (
    STEADY,
    Load,
    check_nothing_lost,
    database_away,
    kill_at_random,
    points,
    store_away,
    written_points,
)
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet, wait_for

SEED = 20260711
AWAY_S = 10.0
GAP_S = 3.0
"""Servers answer within milliseconds; this much a busy machine may take."""
TAKEN_OVER_S = 30.0
"""Within this another worker goes on with the build of one that is gone for good."""
NOTICED_S = 2.0
"""Within this a server goes by what was done to versions that it has in memory."""


@pytest.fixture(scope="module")
def octets(tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgreSQL) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    plan = folder / "plan"
    plan.touch()
    with fleet(folder, postgresql_server, OCTET_CRASH_PLAN=str(plan)) as made:
        for _ in range(2):
            made.add_server()
            made.add_worker()
        made.wait_until_ready()
        build = made.ended(made.servers[0].upload(STEADY).json()["id"])
        assert build["state"] == "succeeded", build["error"]
        for server in made.servers:
            made.wait(lambda server=server: server.serves(STEADY), "the first version to be served", 60)
        yield made


@pytest.mark.timeout(900)
def test_kills_at_every_point_lose_nothing(octets: Fleet) -> None:
    plan = octets.folder / "plan"
    passed = points(plan.with_suffix(".passed"))
    assert {point.split(" ")[1] for point in passed} == written_points()
    with Load(octets, seed=SEED, upload_every_s=4.0) as load:
        plan.write_text("".join(f"process {point}\n" for point in passed))
        octets.wait(lambda: not plan.read_text(), "the last kill", 500)
    check_nothing_lost(octets, load.tally.accepted, 300)
    assert [text for text in load.tally.refused if not text.startswith("503")] == []
    assert load.tally.answers > 50


@pytest.mark.timeout(600)
def test_kills_at_random_lose_nothing(octets: Fleet) -> None:
    with Load(octets, seed=SEED, upload_every_s=8.0) as load:
        assert kill_at_random(octets, seed=SEED, for_s=25.0, every_s=4.0) > 2
    check_nothing_lost(octets, load.tally.accepted, 300)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("away", [database_away, store_away])
def test_what_is_loaded_answers_while_the_database_or_the_store_is_away(octets: Fleet, away: object) -> None:
    assert callable(away)
    with Load(octets, seed=SEED, upload_every_s=5.0) as load:
        time.sleep(2.0)
        start_s = time.monotonic()
        with away(octets):
            time.sleep(AWAY_S)
            assert all(server.is_ready() for server in octets.servers), "they answer for what they have"
            end_s = time.monotonic()
        time.sleep(6.0)
    assert load.tally.longest_gap_s(start_s, end_s) < GAP_S
    assert (load.tally.refused, load.tally.broken) == ([], 0)
    check_nothing_lost(octets, load.tally.accepted, 300)


@pytest.mark.timeout(300)
def test_a_build_of_a_worker_that_never_comes_back_goes_on_with_another(octets: Fleet) -> None:
    build_id = octets.servers[0].upload("orphan").json()["id"]
    octets.wait(lambda: octets.build(build_id)["phase"] == "calibrate", "the third phase", 60)  # type: ignore[index] # a server is there
    dead = next(worker for worker in octets.workers if worker.build_children())
    before = octets.build(build_id)
    dead.kill()
    killed_s = time.monotonic()
    octets.workers.remove(dead)
    wait_for(lambda: not dead.processes(), "its processes to end", 10, dead)
    other = octets.workers[0]
    octets.wait(lambda: bool(other.build_children()), "the other worker to take it over", TAKEN_OVER_S)
    assert time.monotonic() - killed_s < TAKEN_OVER_S
    done = octets.ended(build_id)
    assert done["state"] == "succeeded"
    assert before is not None
    assert done["timings_s"]["validate"] == before["timings_s"]["validate"], "it was not done again"
    octets.add_worker()


@pytest.mark.timeout(300)
def test_servers_go_by_what_another_one_changes_within_two_seconds_and_fail_no_request(octets: Fleet) -> None:
    first, second = octets.servers
    again = octets.ended(first.upload(STEADY, force=True).json()["id"])
    assert again["result"]["version"] == 2
    for server in octets.servers:
        # It is loaded first.
        octets.wait(partial(answers_with, server, 2), "the new version to answer", 60)
    with Load(octets, seed=SEED, upload_every_s=3600.0) as load:
        for number in (1, 2, 1):
            first.client.put(f"/v1/models/{STEADY}/default", json={"version": number}).raise_for_status()
            assert seconds_until(octets, partial(answers_with, second, number)) < NOTICED_S
        first.client.delete(f"/v1/models/{STEADY}/versions/2").raise_for_status()
        gone = f"/v2/models/{STEADY}/versions/2/ready"
        assert seconds_until(octets, lambda: second.client.get(gone).status_code == 404) < NOTICED_S
    assert (load.tally.refused, load.tally.broken) == ([], 0)
    assert load.tally.answers > 10


def seconds_until(octets: Fleet, seen: Callable[[], bool]) -> float:
    started_s = time.monotonic()
    octets.wait(seen, "the change to be seen", 10)
    return time.monotonic() - started_s


def answers_with(server: Octet, version: int) -> bool:
    """Whether it is this version that answers where none is named."""
    return bool(server.infer(STEADY).json()["model_version"] == str(version))
