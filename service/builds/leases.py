"""Which workers are there, and which builds are theirs.

A worker beats: it writes the database's time beside its name. One that has not for `LEASE_S` is dead to the others,
and what it was at goes back to the queue. It may be alive all the same, and only slow: so whoever begins with a
build claims it, which raises a number, and with a smaller number nothing can be written any more
(`service.catalog.catalog`). The queue (`service.builds.workflow`) hands a build to one worker at a time; this is what
makes it safe to take one away.
"""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import gethostname
from typing import Any

import sqlalchemy as sa

from service.builds.crashpoints import reached
from service.catalog.catalog import Catalog
from service.catalog.records import UNFINISHED
from service.catalog.schema import BuildRow, WorkerRow, clock

LEASE_S = 15.0
"""Longer than any pause of a worker that does well, and than a restart of the database."""
BEAT_S = 3.0
STRANDED_S = 120.0
"""A build whose kind of hardware has had no worker for so long is built on another kind: servers compile it for
theirs anyway, and prove it there."""
_MOST_AT_ONCE = 50


class Leases:
    """What the worker `worker`, on hardware of the kind `hardware`, has to do with the others.

    Every method raises CatalogUnavailableError where the database does not answer.
    """

    def __init__(self, catalog: Catalog, *, worker: str, hardware: str, steps: int = 1) -> None:
        """`steps` is the number of the steps that this worker goes through, raised with each change of them."""
        self.worker = worker
        self.steps = steps
        self.hardware = hardware
        self._catalog = catalog
        # The build that was claimed last, and the claim's number.
        self._last: tuple[str, int] | None = None

    def beat(self) -> None:
        """Says that this worker is there."""
        with self._catalog.change() as session:
            known = session.scalars(_beaten(self.worker, self.hardware)).first()
            if known is None:
                row = {"id": self.worker, "hardware": self.hardware}
                session.execute(sa.insert(WorkerRow).values(**row, started_at=clock(), beat_at=clock()))

    def leave(self) -> None:
        """Says that this worker will do no more: its builds need not wait for its lease to end."""
        with self._catalog.change() as session:
            session.execute(sa.delete(WorkerRow).where(WorkerRow.id == self.worker))

    def claim(self, build_id: str, run: str) -> int | None:
        """Claims a build that the queue has given to this worker, whoever had it before.

        Returns:
            The claim's number, or None where another run carries the build out.
        """
        with self._catalog.change() as session:
            row = session.get(BuildRow, build_id, with_for_update=True)
            if row is None or row.run not in (run, None):
                return None
            row.worker, row.run, row.claim = self.worker, run, row.claim + 1
            claim = row.claim
            reached("claim.before_commit")
        self._last = (build_id, claim)
        return claim

    def superseded(self) -> bool:
        """Whether another worker has claimed the build that this one claimed last."""
        if self._last is None:
            return False
        build_id, claim = self._last
        with self._catalog.look() as session:
            return session.scalar(sa.select(BuildRow.claim).where(BuildRow.id == build_id)) != claim

    def take_back(self) -> list[str]:
        """Takes builds from workers that are dead, and from kinds of hardware that nobody builds on; gives their ids.

        So with those that were begun, or wait, with steps that this worker does not go through any more. All are put
        into the queue by the next `hand_out`.
        """
        dead = BuildRow.worker.is_not(None) & ~_beating(WorkerRow.id == BuildRow.worker)
        stranded = (
            (BuildRow.hardware != self.hardware)
            & _same_runtime(self.hardware)
            & BuildRow.worker.is_(None)
            & (BuildRow.created_at < clock() - STRANDED_S)
            & ~_beating(WorkerRow.hardware == BuildRow.hardware)
        )
        unfinished = BuildRow.state.in_(UNFINISHED)
        with self._catalog.change() as session:
            released = session.scalars(
                sa.update(BuildRow)
                .where(unfinished, dead, BuildRow.worker != self.worker)
                .values(worker=None, run=None)
                .returning(BuildRow.id)
            ).all()
            adopted = session.scalars(
                sa.update(BuildRow)
                .where(unfinished, stranded)
                .values(run=None, hardware=self.hardware)
                .returning(BuildRow.id)
            ).all()
            outdated = session.scalars(
                sa.update(BuildRow)
                .where(
                    unfinished,
                    sa.or_(BuildRow.worker.is_(None), BuildRow.worker == self.worker),
                    BuildRow.run.in_([_run(BuildRow.id, steps) for steps in range(1, self.steps)]),
                )
                .values(worker=None, run=None)
                .returning(BuildRow.id)
            ).all()
            # A worker in a pod never comes back under its name.
            session.execute(sa.delete(WorkerRow).where(WorkerRow.beat_at < clock() - 100 * LEASE_S))
        return [*released, *adopted, *outdated]

    def take_unclaimed(self, holders: Callable[[], Mapping[str, str]]) -> list[str]:
        """Takes builds that the queue gave to workers which died before they claimed them; gives their ids.

        `holders` names the worker that has a run, for all runs that the queue has given away. It is asked only where
        a build waits that is older than a lease: before that nobody could be told to be dead.
        """
        overdue = self._overdue()
        with self._catalog.look() as session:
            if session.scalar(sa.select(BuildRow.id).where(overdue).limit(1)) is None:
                return []
        held = holders()
        if not held:
            return []
        beating = sa.select(WorkerRow.id).where(WorkerRow.beat_at > clock() - LEASE_S)
        with self._catalog.change() as session:
            alive = {self.worker, *session.scalars(beating)}
            dead = [run for run, holder in held.items() if holder not in alive]
            # Of those that another worker has claimed meanwhile none is taken: the condition counts when it is written.
            return list(
                session.scalars(
                    sa.update(BuildRow)
                    .where(overdue, BuildRow.run.in_(dead))
                    .values(run=None)
                    .returning(BuildRow.id)
                )
            )

    def hand_out(self, put: Callable[[str], str]) -> None:
        """Has `put` bring builds of this hardware to the queue that are not in it; it returns the run's name.

        Others wait for none of it: a build is handed out by one worker, which may die at it.
        """
        waiting = (
            sa.select(BuildRow)
            .where(
                BuildRow.state.in_(UNFINISHED),
                BuildRow.run.is_(None),
                sa.or_(BuildRow.hardware.is_(None), BuildRow.hardware == self.hardware),
            )
            .order_by(BuildRow.created_at)
            .limit(_MOST_AT_ONCE)
        )
        with self._catalog.look() as session:
            if session.scalars(waiting.limit(1)).first() is None:
                return
        with self._catalog.change() as session:
            for row in session.scalars(waiting.with_for_update(skip_locked=True)):
                row.run = put(row.id)

    def run_of(self, build_id: str) -> str:
        """The queue's name of the run that takes a build through the steps of this worker."""
        return str(_run(build_id, self.steps))

    def unfinished(self) -> dict[str, str]:
        """Runs of unfinished builds that this worker has claimed, or for long nobody, each with its build."""
        mine = BuildRow.state.in_(UNFINISHED) & (BuildRow.worker == self.worker) & BuildRow.run.is_not(None)
        query = sa.select(BuildRow.run, BuildRow.id).where(mine | self._overdue())
        with self._catalog.look() as session:
            # One's own before those that merely wait, of which there may be any number.
            query = query.order_by(BuildRow.worker.is_(None), BuildRow.created_at).limit(_MOST_AT_ONCE)
            found = session.execute(query)
            return {str(run): build_id for run, build_id in found}

    def _overdue(self) -> sa.ColumnElement[bool]:
        """Builds that were put into the queue, and longer ago than a lease, but that nobody has claimed."""
        return (
            BuildRow.state.in_(UNFINISHED)
            & sa.or_(BuildRow.hardware.is_(None), BuildRow.hardware == self.hardware)
            & BuildRow.run.is_not(None)
            & BuildRow.worker.is_(None)
            & (BuildRow.created_at < clock() - LEASE_S)
        )


def worker_name(home: Path) -> str:
    """The name of the worker that works in `home`, the same after a restart: it goes on with what it was at.

    A copy of the folder on another machine gets another one.
    """
    path, host = home / "worker.name", gethostname()
    known = path.read_text(encoding="ascii") if path.exists() else ""
    if known.rpartition("-")[0] != host:
        known = f"{host}-{uuid.uuid4().hex[:8]}"
        path.write_text(known, encoding="ascii")
    return known


def _run(build_id: Any, steps: int) -> Any:
    """The name of a run, of an id or of the column of ids."""
    return build_id if steps == 1 else build_id + f".{steps}"


def _beaten(worker: str, hardware: str) -> sa.sql.dml.ReturningUpdate[tuple[str]]:
    beaten = sa.update(WorkerRow).where(WorkerRow.id == worker).values(beat_at=clock(), hardware=hardware)
    return beaten.returning(WorkerRow.id)


def _beating(who: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.exists().where(who, WorkerRow.beat_at > clock() - LEASE_S)


def _same_runtime(hardware: str) -> sa.ColumnElement[bool]:
    return BuildRow.hardware.like(f"{hardware.partition('-')[0]}-%")
