"""Models, versions and builds: the one record of what was accepted, what it became and what may answer."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from service.builds.crashpoints import reached
from service.catalog import rows
from service.catalog.migration import check
from service.catalog.records import UNFINISHED, Build, BuildState, EngineStatus, NewBuild, Version
from service.catalog.schema import (
    WRITES,
    BuildRow,
    EngineRow,
    ModelRow,
    RevisionRow,
    VersionRow,
    asking,
    create_engine,
    take_turn,
    translated,
)
from service.errors import CancelledBuildError, ConflictError

__all__ = ["Build", "BuildState", "Catalog", "NewBuild", "Version"]


class Catalog:
    """The catalog at `url`. Any number of processes and threads may use it at the same time.

    Every method raises CatalogUnavailableError where the database does not answer. Those that a worker calls for a
    build take the number of its `claim` (`service.builds.leases`), and raise ClaimLostError where another has
    claimed it.
    """

    def __init__(self, url: str) -> None:
        """Opens it.

        Raises:
            StartError: its tables are older than this code.
        """
        self._engine = create_engine(url)
        self._writing = self._engine.execution_options(**WRITES)
        self._asking = asking(self._engine)
        # When it was asked for, on time.monotonic, and what it was.
        self._revision = (float("-inf"), 0)
        try:
            with translated():
                check(self._engine)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Closes the connections. Idempotent."""
        self._engine.dispose()

    def accept(
        self, new: NewBuild, *, force: bool = False, check: Callable[[Session], None] = lambda _: None
    ) -> tuple[Build, bool]:
        """Records a build as queued. Without `force`, an equal one that goes on or has a version is returned.

        `check` is called before a new one is recorded, in the same transaction; what it raises prevents it.

        Returns:
            The build, and whether it is a new one.
        """
        with self.turn() as session:
            earlier = None if force else rows.reused(session, new)
            if earlier is not None:
                return rows.to_build(earlier), False
            check(session)
            row = BuildRow(
                id=uuid.uuid4().hex,
                model=new.model,
                fingerprint=new.fingerprint,
                options=new.options.model_dump(mode="json"),
                hardware=new.hardware,
                key_id=new.key_id,
                state=BuildState.QUEUED,
                phase=None,
                progress=0.0,
                timings={},
                files=dict(new.files),
                samples=new.samples,
                created_at=time.time(),
            )
            session.add(row)
            session.flush()
            build = rows.to_build(row)
            reached("accept.before_commit")
        reached("accept.after_commit")
        return build, True

    def build(self, build_id: str) -> Build:
        """One build.

        Raises:
            NotFoundError: no such build.
        """
        with self.look() as session:
            return rows.to_build(rows.find_build(session, build_id))

    def builds(self, *, limit: int = 100, states: Sequence[BuildState] = tuple(BuildState)) -> list[Build]:
        """The newest builds in these states, newest first."""
        query = (
            sa.select(BuildRow)
            .where(BuildRow.state.in_(states))
            .order_by(BuildRow.created_at.desc())
            .limit(limit)
        )
        with self.look() as session:
            return [rows.to_build(row) for row in session.scalars(query)]

    def counts(self) -> dict[BuildState, int]:
        """How many builds are in each state."""
        query = sa.select(BuildRow.state, sa.func.count()).group_by(BuildRow.state)
        with self.look() as session:
            return {BuildState(state): count for state, count in session.execute(query)}

    def timings(self) -> list[dict[str, float]]:
        """Seconds that each finished phase took, of every build that has ended."""
        query = sa.select(BuildRow.timings).where(BuildRow.state.not_in(UNFINISHED))
        with self.look() as session:
            return list(session.scalars(query))

    def begin_phase(self, build_id: str, phase: str, progress: float, *, claim: int | None = None) -> bool:
        """Notes that `phase` begins. False where the build has ended: nothing more may be done for it."""
        return self._advance(
            build_id,
            claim,
            state=BuildState.RUNNING,
            phase=phase,
            progress=progress,
            started_at=sa.func.coalesce(BuildRow.started_at, time.time()),
        )

    def note_progress(self, build_id: str, progress: float, *, claim: int | None = None) -> bool:
        """Notes the progress of the whole build, 0 to 1. False where the build has ended."""
        return self._advance(build_id, claim, progress=progress)

    def finish_phase(
        self,
        build_id: str,
        phase: str,
        *,
        seconds: float,
        files: Mapping[str, str],
        claim: int | None = None,
    ) -> bool:
        """Notes what a phase took and wrote; twice is once. False where the build has ended."""
        with self.turn() as session:
            row = rows.find_build(session, build_id, change=True)
            rows.check_claim(row, claim)
            if BuildState(row.state).ended:
                return False
            # New dictionaries: SQLAlchemy does not see changes inside of the old ones.
            row.timings = row.timings | {phase: seconds}
            row.files = row.files | dict(files)
        return True

    def fail(self, build_id: str, *, error: str, code: str, claim: int | None = None) -> bool:
        """Ends a build with an error. False where it has ended already."""
        return self._end(build_id, BuildState.FAILED, error=error, code=code, claim=claim)

    def cancel(self, build_id: str) -> Build:
        """Calls a build off; whoever works on it finds out by asking. Cancelling twice is cancelling once.

        Raises:
            NotFoundError: no such build.
            ConflictError: it has succeeded or failed already.
        """
        self._end(
            build_id, BuildState.CANCELLED, error="the build was cancelled.", code=CancelledBuildError.code
        )
        build = self.build(build_id)
        if build.state is not BuildState.CANCELLED:
            remedy = (
                "delete the version instead"
                if build.state is BuildState.SUCCEEDED
                else "nothing is left to stop"
            )
            raise ConflictError(
                f"build {build_id} has {build.state} already and cannot be cancelled; {remedy}."
            )
        return build

    def publish(
        self,
        build_id: str,
        *,
        files: Mapping[str, str],
        summary: dict[str, Any],
        engine: EngineStatus | None = None,
        claim: int | None = None,
    ) -> Version:
        """Makes the build's result a version, in one transaction. Repeating it returns the same version.

        `engine` is what the version is on the hardware that it was verified on.

        Raises:
            NotFoundError: no such build.
            CancelledBuildError: the build was cancelled, or has failed, in the meantime.
        """
        with self.turn() as session:
            build = rows.find_build(session, build_id, change=True)
            rows.check_claim(build, claim)
            if build.state == BuildState.SUCCEEDED:
                return rows.published_by(session, build)
            if build.state not in UNFINISHED:
                raise CancelledBuildError(f"build {build_id} has {build.state} and is not published.")
            version = rows.publish(session, build, files=files, summary=summary, engine=engine)
            reached("publish.before_commit")
        reached("publish.after_commit")
        return version

    def versions(self, model: str | None = None) -> list[Version]:
        """All published versions, or those of one model, by model and number."""
        query = sa.select(VersionRow, ModelRow.default_version).join(ModelRow)
        if model is not None:
            query = query.where(VersionRow.model == model)
        with self.look() as session:
            found = session.execute(query.order_by(VersionRow.model, VersionRow.number))
            return [rows.to_version(row, default) for row, default in found]

    def version(self, model: str, number: int) -> Version:
        """One version.

        Raises:
            NotFoundError: no such version; the message names those that there are.
        """
        with self.look() as session:
            row, parent = rows.find_version(session, model, number)
            return rows.to_version(row, parent.default_version)

    def summary(self, model: str, number: int) -> dict[str, Any] | None:
        """What a version's report says in short, or None where there is no such version."""
        with self.look() as session:
            row = session.get(VersionRow, (model, number))
            return None if row is None else dict(row.summary)

    def revision(self, *, within_s: float = 0.0) -> int:
        """A number that changes whenever a published version, a default or a key does; cheap to ask for.

        What was the answer less than `within_s` ago, to whomever in this process, is told again.
        """
        asked_s, value = self._revision
        now_s = time.monotonic()
        if now_s - asked_s >= within_s:
            with translated(), self._asking.connect() as connection:
                value = connection.scalars(sa.select(RevisionRow.value)).one()
            self._revision = now_s, value
        return value

    def set_default(self, model: str, number: int) -> Version:
        """Makes a version the one that answers when a request names none.

        Raises:
            NotFoundError: no such version.
        """
        with self.turn() as session:
            row, parent = rows.find_version(session, model, number)
            if parent.default_version != number:
                parent.default_version = number
                rows.bump_revision(session)
            return rows.to_version(row, number)

    def delete_version(self, model: str, number: int) -> None:
        """Removes a version.

        Raises:
            NotFoundError: no such version.
            ConflictError: it is the default and others exist, of which the caller must promote one first.
        """
        with self.turn() as session:
            row, parent = rows.find_version(session, model, number)
            others = [other for other in rows.version_numbers(session, model) if other != number]
            if parent.default_version == number and others:
                raise ConflictError(
                    f"version {number} is the default of model {model!r}; "
                    f"make another one the default first ({rows.listed(others)}), or delete the whole model."
                )
            session.delete(row)
            session.execute(sa.delete(EngineRow).where(EngineRow.model == model, EngineRow.number == number))
            if not others:
                parent.default_version = None
            rows.bump_revision(session)

    def delete_model(self, model: str) -> None:
        """Removes all versions of a model and cancels its unfinished builds.

        Raises:
            NotFoundError: no such model.
        """
        with self.turn() as session:
            parent = rows.find_model(session, model)
            unfinished = sa.select(BuildRow).where(BuildRow.model == model, BuildRow.state.in_(UNFINISHED))
            for build in session.scalars(unfinished.with_for_update()):
                rows.end(build, BuildState.CANCELLED)
                build.error, build.code = "the build's model was deleted.", CancelledBuildError.code
            session.execute(sa.delete(VersionRow).where(VersionRow.model == model))
            session.execute(sa.delete(EngineRow).where(EngineRow.model == model))
            parent.default_version = None
            rows.bump_revision(session)

    def digests(self) -> set[str]:
        """Every blob that a version, an engine of it or an unfinished build needs."""
        with self.look() as session:
            return rows.digests(session)

    @contextlib.contextmanager
    def look(self) -> Iterator[Session]:
        """A session to read in."""
        with translated(), Session(self._engine) as session:
            yield session

    @contextlib.contextmanager
    def change(self) -> Iterator[Session]:
        """A transaction to write in, beside others."""
        with translated(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def turn(self) -> Iterator[Session]:
        """A transaction to write in, after all others that take turns."""
        with self.change() as session:
            take_turn(session.connection())
            yield session

    def _advance(self, build_id: str, claim: int | None = None, **values: Any) -> bool:
        same = BuildRow.id == build_id
        if claim is not None:
            same &= BuildRow.claim == claim
        change = sa.update(BuildRow).where(same, BuildRow.state.in_(UNFINISHED)).values(**values)
        with translated(), self._writing.begin() as connection:
            if connection.execute(change).rowcount == 1:
                return True
        with self.look() as session:
            rows.check_claim(rows.find_build(session, build_id), claim)
        return False

    def _end(
        self, build_id: str, state: BuildState, *, error: str, code: str, claim: int | None = None
    ) -> bool:
        return self._advance(build_id, claim, state=state, error=error, code=code, finished_at=time.time())
