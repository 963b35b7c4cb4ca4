"""The queue of builds in a file, with the real dbos: what becomes of builds that it is done with."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from dbos import DBOS

from engines.options import BuildOptions
from service.builds import workflow
from service.builds.leases import LEASE_S, Leases
from service.builds.run import Builder
from service.builds.workflow import BuildQueue
from service.catalog.catalog import BuildState, Catalog, NewBuild
from service.catalog.retention import Retention
from service.catalog.schema import BuildRow


def breaks(build_id: str, claim: int) -> Any:
    raise RuntimeError(f"no room for claim {claim}")


@pytest.fixture
def queue(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BuildQueue]:
    """A queue whose builds cannot be carried out, for a reason that nobody has thought of."""
    # dbos ends only once its listener has come round.
    monkeypatch.setattr(workflow, "_LISTEN_POLL_S", 0.05)
    leases = Leases(catalog, worker="a", hardware="cpu-x")
    leases.beat()
    builder = cast("Builder", SimpleNamespace(run=breaks, catalog=catalog))
    made = BuildQueue(f"sqlite:///{tmp_path / 'queue.db'}", builder=builder, catalog=catalog, leases=leases)
    made.launch()
    yield made
    DBOS.destroy(destroy_registry=True)


def test_a_build_that_is_forgotten_before_its_turn_is_none_to_begin_with(
    catalog: Catalog, queue: BuildQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = catalog.accept(NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={}))[0]
    claim = Leases.claim

    def claim_and_forget(leases: Leases, build_id: str, run: str) -> int | None:
        number = claim(leases, build_id, run)
        catalog.cancel(build_id)
        Retention(catalog).forget(build_id, lambda _: None)
        return number

    monkeypatch.setattr(Leases, "claim", claim_and_forget)
    queue.sweep()
    deadline = time.monotonic() + 20
    while not (ended := DBOS.list_workflows(status=["ERROR", "SUCCESS"])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # As far as that it is carried out, which in this queue nothing can be.
    assert [(status.workflow_id, str(status.error)) for status in ended] == [
        (build.id, "no room for claim 1")
    ]
    assert not queue.begun


def test_builds_that_the_queue_is_done_with_fail_whoever_had_them(
    catalog: Catalog, queue: BuildQueue
) -> None:
    news = [NewBuild(model="m", fingerprint=name, options=BuildOptions(), files={}) for name in "fg"]
    mine, nobodys = (catalog.accept(new)[0] for new in news)
    queue.sweep()
    deadline = time.monotonic() + 20
    while len(DBOS.list_workflows(status="ERROR")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The worker of one has died since, and was found out.
    with catalog.change() as session:
        change = sa.update(BuildRow).values(created_at=nobodys.created_at - 2 * LEASE_S, worker=None)
        session.execute(change.where(BuildRow.id == nobodys.id))
        session.execute(sa.update(BuildRow).values(worker="a").where(BuildRow.id == mine.id))
    queue.give_up()
    for build in (mine, nobodys):
        ended = catalog.build(build.id)
        assert (ended.state, ended.code) == (BuildState.FAILED, "build.internal")
        assert "could not be carried out (error: no room for claim 1); look into" in str(ended.error)
