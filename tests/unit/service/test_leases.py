import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from engines.options import BuildOptions
from service.builds import leases as module
from service.builds.leases import Leases, worker_name
from service.catalog.catalog import Catalog, NewBuild
from service.catalog.schema import BuildRow, WorkerRow
from service.errors import ClaimLostError
from tests.databases import PostgreSQL

HERE, THERE = "openvino-here", "openvino-there"


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql_server")
        url = server.new_catalog()
    opened = Catalog(url)
    yield opened
    opened.close()


def worker(catalog: Catalog, name: str, hardware: str = HERE) -> Leases:
    leases = Leases(catalog, worker=name, hardware=hardware)
    leases.beat()
    return leases


def accept(catalog: Catalog, hardware: str | None = HERE) -> str:
    new = NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={}, hardware=hardware)
    return catalog.accept(new, force=True)[0].id


def die(catalog: Catalog, name: str) -> None:
    """As if the worker had not beaten for a lease."""
    with catalog.change() as session:
        session.execute(
            sa.update(WorkerRow)
            .where(WorkerRow.id == name)
            .values(beat_at=WorkerRow.beat_at - module.LEASE_S)
        )


def handed_out(leases: Leases) -> list[str]:
    given: list[str] = []

    def put(build_id: str) -> str:
        given.append(build_id)
        return build_id

    leases.hand_out(put)
    return given


def test_a_build_is_handed_out_once(catalog: Catalog) -> None:
    first, second = accept(catalog), accept(catalog)
    assert handed_out(worker(catalog, "a")) == [first, second]
    assert handed_out(worker(catalog, "a")) == handed_out(worker(catalog, "b")) == []


def test_a_build_whose_hand_out_was_cut_off_is_handed_out_again(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a = worker(catalog, "a")

    def cut_off(_: str) -> str:
        raise OSError("the queue is away")

    with pytest.raises(OSError, match="away"):
        a.hand_out(cut_off)
    assert handed_out(a) == [build_id]


def test_workers_that_hand_out_at_the_same_time_share_the_builds(catalog: Catalog) -> None:
    ids = {accept(catalog) for _ in range(20)}
    barrier = threading.Barrier(4)
    given: list[str] = []

    def hand_out(name: str) -> None:
        leases = worker(catalog, name)
        barrier.wait()
        given.extend(handed_out(leases))

    threads = [threading.Thread(target=hand_out, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == sorted(ids)


def test_a_later_claim_takes_the_build_from_the_earlier_one(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a, b = worker(catalog, "a"), worker(catalog, "b")
    handed_out(a)
    first, second = a.claim(build_id, build_id), b.claim(build_id, build_id)
    assert (first, second) == (1, 2)
    assert a.superseded()
    assert not b.superseded()
    writes = (
        lambda claim: catalog.begin_phase(build_id, "validate", 0.1, claim=claim),
        lambda claim: catalog.note_progress(build_id, 0.1, claim=claim),
        lambda claim: catalog.finish_phase(build_id, "validate", seconds=1, files={}, claim=claim),
        lambda claim: catalog.publish(build_id, files={}, summary={}, claim=claim),
    )
    for write in writes:
        with pytest.raises(ClaimLostError, match="claimed with number 1 and is with worker b under 2"):
            write(first)
        assert write(second)
    with pytest.raises(ClaimLostError):
        catalog.fail(build_id, error="no.", code="x", claim=first)
    assert not catalog.fail(build_id, error="no.", code="x", claim=second), "it has ended"
    assert len(catalog.versions()) == 1


def test_what_another_run_carries_out_is_not_claimed(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a = worker(catalog, "a")
    handed_out(a)
    assert a.claim(build_id, f"{build_id}.2") is None
    assert a.claim("unknown", "unknown") is None
    assert not a.superseded()


def test_builds_of_a_worker_that_stopped_beating_are_taken_back_and_no_others(catalog: Catalog) -> None:
    dead, living, waiting, done = (accept(catalog) for _ in range(4))
    a, b, c = (worker(catalog, name) for name in "abc")
    handed_out(a)
    assert a.claim(dead, dead)
    assert a.claim(done, done)
    catalog.publish(done, files={}, summary={})
    assert b.claim(living, living)
    assert c.take_back() == []
    die(catalog, "a")
    assert c.take_back() == [dead]
    assert c.take_back() == []
    assert handed_out(c) == [dead], f"{waiting} is in the queue all along"
    assert c.claim(dead, dead) == 2


def test_a_worker_that_leaves_need_not_be_waited_for(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a, b = worker(catalog, "a"), worker(catalog, "b")
    handed_out(a)
    a.claim(build_id, build_id)
    a.leave()
    assert b.take_back() == [build_id]


def test_a_worker_does_not_take_from_itself(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a = worker(catalog, "a")
    handed_out(a)
    a.claim(build_id, build_id)
    die(catalog, "a")
    assert a.take_back() == []


def test_builds_wait_for_their_hardware_until_nobody_has_it(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, anywhere, gpu = accept(catalog, THERE), accept(catalog, None), accept(catalog, "tensorrt-here")
    here = worker(catalog, "here")
    assert handed_out(here) == [anywhere]
    assert here.take_back() == []
    monkeypatch.setattr(module, "STRANDED_S", -1.0)
    other = worker(catalog, "there", THERE)
    assert here.take_back() == [], "its worker is there, only busy"
    die(catalog, "there")
    assert here.take_back() == [there]
    assert handed_out(here) == [there]
    assert handed_out(other) == []
    with catalog.look() as session:
        assert session.get_one(BuildRow, gpu).run is None


def test_a_worker_knows_its_unfinished_builds_and_those_that_are_nobodys(catalog: Catalog) -> None:
    build_id, others, nobodys = accept(catalog), accept(catalog), accept(catalog)
    a = worker(catalog, "a")
    handed_out(a)
    a.claim(build_id, build_id)
    worker(catalog, "b").claim(others, others)
    assert a.unfinished() == {build_id: build_id}
    wait_a_lease(catalog)
    assert a.unfinished() == {build_id: build_id, nobodys: nobodys}
    catalog.cancel(build_id)
    catalog.cancel(nobodys)
    assert a.unfinished() == {}


def test_a_worker_sees_its_own_build_behind_however_many_that_wait(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 3)
    waiting = [accept(catalog) for _ in range(4)]
    a, mine = worker(catalog, "a"), accept(catalog)
    while handed_out(a):
        pass
    a.claim(mine, mine)
    wait_a_lease(catalog)
    assert list(a.unfinished()) == [mine, *waiting[:2]]


def test_a_worker_keeps_its_name_in_its_folder_and_a_copy_gets_another(tmp_path: Path) -> None:
    name = worker_name(tmp_path)
    assert worker_name(tmp_path) == name
    (tmp_path / "worker.name").write_text(f"elsewhere-{name.rpartition('-')[2]}")
    assert worker_name(tmp_path) != name
    assert not worker_name(tmp_path).startswith("elsewhere")


def test_builds_of_steps_that_are_gone_begin_again_and_newer_ones_are_let_alone(catalog: Catalog) -> None:
    mine, waiting, others = accept(catalog), accept(catalog), accept(catalog)
    old, other = worker(catalog, "a"), worker(catalog, "b")
    handed_out(old)
    old.claim(mine, mine)
    other.claim(others, others)
    new = Leases(catalog, worker="a", hardware=HERE, steps=2)
    assert new.run_of(mine) == f"{mine}.2"
    assert sorted(new.take_back()) == sorted([mine, waiting]), (
        "the other's worker still goes through the old ones"
    )
    new.hand_out(new.run_of)
    assert new.take_back() == old.take_back() == []
    assert old.claim(mine, mine) is None
    assert new.claim(mine, f"{mine}.2") == 2


def wait_a_lease(catalog: Catalog) -> None:
    """As if every build had been accepted a lease earlier."""
    with catalog.change() as session:
        session.execute(sa.update(BuildRow).values(created_at=BuildRow.created_at - module.LEASE_S))


def test_what_a_worker_died_with_before_its_claim_is_taken_back_and_nothing_else(catalog: Catalog) -> None:
    given, waiting, livings, claimed, done, elsewhere = (
        *(accept(catalog) for _ in range(5)),
        accept(catalog, THERE),
    )
    for worker_id, hardware in (("a", HERE), ("b", HERE), ("there", THERE)):
        handed_out(worker(catalog, worker_id, hardware))
    b, c = worker(catalog, "b"), worker(catalog, "c")
    b.claim(claimed, claimed)
    catalog.cancel(done)
    die(catalog, "a")
    wait_a_lease(catalog)
    held = {given: "a", livings: "b", claimed: "a", done: "a", elsewhere: "a"}
    assert c.take_unclaimed(lambda: held) == [given]
    assert c.take_unclaimed(lambda: held) == []
    assert handed_out(c) == [given], f"{waiting} is in the queue all along"


def test_what_a_worker_was_given_that_has_left_is_taken_back(catalog: Catalog) -> None:
    build_id = accept(catalog, None)
    a, b = worker(catalog, "a"), worker(catalog, "b")
    handed_out(a)
    wait_a_lease(catalog)
    assert b.take_unclaimed(lambda: {build_id: "a"}) == []
    a.leave()
    assert b.take_unclaimed(lambda: {build_id: "a"}) == [build_id]


def test_a_worker_does_not_take_what_it_is_about_to_claim_itself(catalog: Catalog) -> None:
    build_id = accept(catalog)
    a = worker(catalog, "a")
    handed_out(a)
    wait_a_lease(catalog)
    die(catalog, "a")
    assert a.take_unclaimed(lambda: {build_id: "a"}) == []


def test_the_queue_is_asked_only_where_a_build_has_waited_for_a_lease(catalog: Catalog) -> None:
    build_id, claimed, elsewhere = accept(catalog), accept(catalog), accept(catalog, THERE)
    a = worker(catalog, "a")
    handed_out(a)
    handed_out(worker(catalog, "there", THERE))
    assert a.take_unclaimed(lambda: pytest.fail("too young")) == []
    wait_a_lease(catalog)
    a.claim(claimed, claimed)
    a.claim(build_id, build_id)
    accept(catalog)
    assert a.take_unclaimed(lambda: pytest.fail(f"{elsewhere} is not of this queue")) == []
