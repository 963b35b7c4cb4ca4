"""Rows of the catalog inside one session: found, changed, and turned into values."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from engines.options import BuildOptions
from service.catalog.records import UNFINISHED, Build, BuildState, EngineStatus, NewBuild, Samples, Version
from service.catalog.schema import BuildRow, EngineRow, ModelRow, RevisionRow, VersionRow
from service.errors import CancelledBuildError, ClaimLostError, NotFoundError


def publish(
    session: Session,
    build: BuildRow,
    *,
    files: Mapping[str, str],
    summary: dict[str, Any],
    engine: EngineStatus | None,
) -> Version:
    model = session.get(ModelRow, build.model, with_for_update=True)
    if model is None:
        model = ModelRow(name=build.model, default_version=None, next_version=1, created_at=time.time())
        session.add(model)
        session.flush()
    row = VersionRow(
        model=build.model,
        number=model.next_version,
        build_id=build.id,
        files=dict(files),
        options=build.options,
        summary=summary,
        created_at=time.time(),
    )
    session.add(row)
    if engine is not None:
        session.add(
            EngineRow(
                model=row.model,
                number=row.number,
                hardware=engine.hardware,
                state=engine.state,
                reason=engine.reason,
                files=dict(engine.files),
                changed_at=time.time(),
            )
        )
    model.next_version = row.number + 1
    if model.default_version is None or BuildOptions.parse(build.options).promote:
        model.default_version = row.number
    end(build, BuildState.SUCCEEDED)
    build.progress = 1.0
    build.version = row.number
    bump_revision(session)
    session.flush()
    return to_version(row, model.default_version)


def reused(session: Session, new: NewBuild) -> BuildRow | None:
    """The newest equal build that is going on, or whose version still exists.

    Of two wishes about the same samples, that to have them deleted counts.
    """
    published = sa.exists().where(VersionRow.build_id == BuildRow.id)
    query = (
        sa.select(BuildRow)
        .where(BuildRow.fingerprint == new.fingerprint, BuildRow.state.in_(UNFINISHED) | published)
        .order_by(BuildRow.created_at.desc())
        .limit(1)
    )
    row = session.scalars(query).first()
    if row is not None and new.samples is Samples.DELETE:
        row.samples = new.samples
    return row


def find_build(session: Session, build_id: str, *, change: bool = False) -> BuildRow:
    row = session.get(BuildRow, build_id, with_for_update=change)
    if row is None:
        raise NotFoundError(f"there is no build {build_id!r}; GET /v1/builds lists them.")
    return row


def check_claim(row: BuildRow, claim: int | None) -> None:
    """Refuses to go on for a worker whose build another one has claimed meanwhile."""
    if claim is not None and row.claim != claim:
        raise ClaimLostError(
            f"build {row.id} was claimed with number {claim} and is with worker {row.worker} under {row.claim} now."
        )


def find_model(session: Session, name: str) -> ModelRow:
    row = session.get(ModelRow, name)
    if row is None or not version_numbers(session, name):
        raise NotFoundError(f"there is no model {name!r}; GET /v1/models lists them.")
    return row


def find_version(session: Session, model: str, number: int) -> tuple[VersionRow, ModelRow]:
    parent = find_model(session, model)
    row = session.get(VersionRow, (model, number))
    if row is None:
        there = listed(version_numbers(session, model))
        raise NotFoundError(f"model {model!r} has no version {number}; there is {there}.")
    return row, parent


def version_numbers(session: Session, model: str) -> list[int]:
    query = sa.select(VersionRow.number).where(VersionRow.model == model).order_by(VersionRow.number)
    return list(session.scalars(query))


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def published_by(session: Session, build: BuildRow) -> Version:
    row = session.scalars(sa.select(VersionRow).where(VersionRow.build_id == build.id)).first()
    if row is None:
        raise CancelledBuildError(f"the version that build {build.id} published was deleted.")
    return to_version(row, session.get_one(ModelRow, build.model).default_version)


def end(row: BuildRow, state: BuildState) -> None:
    row.state = state
    row.finished_at = time.time()


def bump_revision(session: Session) -> None:
    session.execute(sa.update(RevisionRow).values(value=RevisionRow.value + 1))


def to_build(row: BuildRow) -> Build:
    return Build(
        id=row.id,
        model=row.model,
        options=BuildOptions.parse(row.options),
        state=BuildState(row.state),
        phase=row.phase,
        progress=row.progress,
        timings=dict(row.timings),
        files=dict(row.files),
        error=row.error,
        code=row.code,
        version=row.version,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        samples=Samples(row.samples or Samples.KEEP),
        samples_removed_at=row.samples_removed_at,
        key_id=row.key_id,
    )


def to_version(row: VersionRow, default: int | None) -> Version:
    return Version(
        model=row.model,
        number=row.number,
        build_id=row.build_id,
        files=dict(row.files),
        options=BuildOptions.parse(row.options),
        summary=dict(row.summary),
        created_at=row.created_at,
        default=row.number == default,
    )


def digests(session: Session) -> set[str]:
    """Every blob that a version, an engine of it or an unfinished build needs."""
    unfinished = sa.select(BuildRow.files).where(BuildRow.state.in_(UNFINISHED))
    queries = (sa.select(VersionRow.files), sa.select(EngineRow.files), unfinished)
    return {digest for query in queries for files in session.scalars(query) for digest in files.values()}
