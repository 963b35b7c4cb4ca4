"""What rows of the catalog have outlived their time, and which blobs something still names.

References are counted by asking, never by a counter: a blob may belong to any number of uploads, versions and engines.
"""

import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from engines.workspace import SAMPLES, UPLOADED_LABELS, UPLOADED_SAMPLES
from service.builds.crashpoints import reached
from service.catalog import rows
from service.catalog.catalog import Catalog
from service.catalog.holds import HELD_S
from service.catalog.records import UNFINISHED, Build, BuildState, Samples
from service.catalog.schema import BuildRow, EngineRow, HoldRow, ModelRow, VersionRow, clock
from service.errors import ConflictError

UPLOAD = "upload/"
OF_SAMPLES = (UPLOADED_SAMPLES, UPLOADED_LABELS, SAMPLES)
"""Prefixes of a build's files that are its samples, as they came and as they were converted, and their labels."""
Key = tuple[str, int]
"""Model and version number."""
AT_ONCE = 100
"""Builds that are looked at in one turn: whoever else wants to write waits for it."""


@dataclass(frozen=True, kw_only=True)
class DueSamples:
    """Which builds' samples are to go."""

    # Those of builds that ended before this time, and where it was asked for of all that have ended.
    ended_before: float

    @property
    def query(self) -> sa.Select[BuildRow]:
        """The builds."""
        due = (BuildRow.samples == Samples.DELETE) | (BuildRow.finished_at < self.ended_before)
        return sa.select(BuildRow).where(
            BuildRow.state.not_in(UNFINISHED), BuildRow.samples_removed_at.is_(None), due
        )


class Retention:
    """What sweeps ask the catalog for, and have it forget.

    Every method raises CatalogUnavailableError where the database does not answer.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def kept(self) -> set[str]:
        """Every blob that has a reason to be in the store now."""
        with self._catalog.look() as session:
            return _kept(session)

    def remove_unnamed(
        self, candidates: Collection[str], remove: Callable[[Collection[str]], None]
    ) -> set[str]:
        """Has `remove` delete those that nothing keeps, and gives them; nobody can begin to need one meanwhile."""
        with self._catalog.turn() as session:
            unnamed = set(candidates) - _kept(session)
            remove(unnamed)
        return unnamed

    def samples_due(self, due: DueSamples) -> tuple[int, set[str]]:
        """How many builds' samples are to go, and which blobs would go with them."""
        with self._catalog.look() as session:
            found = session.scalars(due.query).all()
            if not found:
                # As nearly always, and every process asks: what is kept is in every row that there is.
                return 0, set()
            kept = _kept(session, without={row.id for row in found})
            return len(found), set().union(*map(_samples, found)) - kept

    def remove_samples(self, due: DueSamples, remove: Callable[[Collection[str]], None]) -> int:
        """Has `remove` delete samples of some builds that no other build keeps; of how many builds, 0 at the end.

        The blobs go first: a build that says that its samples were removed does not lie, whenever this is cut off.
        """
        with self._catalog.turn() as session:
            found = session.scalars(due.query.limit(AT_ONCE)).all()
            for row in found:
                row.samples_removed_at = time.time()
            session.flush()
            gone = set().union(*map(_samples, found)) - _kept(session)
            remove(gone)
            if gone:
                reached("sweep.samples_removed")
        return len(found)

    def builds_due(self, ended_before: float) -> list[str]:
        """Builds that ended before this time and have no version, or none any more."""
        with self._catalog.look() as session:
            return list(session.scalars(sa.select(BuildRow.id).where(_fruitless(ended_before))))

    def drop_builds(self, ended_before: float) -> list[str]:
        """Forgets the builds that are due, and gives them; their files are then named by nothing."""
        with self._catalog.turn() as session:
            drop = sa.delete(BuildRow).where(_fruitless(ended_before)).returning(BuildRow.id)
            dropped = list(session.scalars(drop))
        if dropped:
            reached("sweep.builds_dropped")
        return dropped

    def forget(self, build_id: str, remove: Callable[[Collection[str]], None]) -> Build:
        """Removes an ended build without a version from the list, at once instead of in the course of time.

        `remove` deletes those of its blobs that nothing else keeps.

        Returns:
            The build as it was.

        Raises:
            NotFoundError: no such build.
            ConflictError: it goes on, or its version is there.
        """
        with self._catalog.turn() as session:
            row = rows.find_build(session, build_id, change=True)
            if row.state in UNFINISHED:
                raise ConflictError(
                    f"build {build_id} is {row.state} and cannot be forgotten; cancel it first (DELETE without forget)."
                )
            version = session.scalars(sa.select(VersionRow).where(VersionRow.build_id == build_id)).first()
            if version is not None:
                raise ConflictError(
                    f"build {build_id} made version {version.number} of model {version.model!r} and cannot be "
                    "forgotten before it; delete the version first."
                )
            build = rows.to_build(row)
            session.delete(row)
            session.flush()
            remove(set(build.files.values()) - _kept(session))
        return build

    def versions_due(self, keep: int, unused_since: float) -> list[Key]:
        """Versions beyond each model's default and `keep` newest others that nobody used since this time."""
        query = sa.select(VersionRow, ModelRow.default_version).join(ModelRow)
        others: dict[str, list[VersionRow]] = {}
        with self._catalog.look() as session:
            for row, default in session.execute(query.order_by(VersionRow.model, VersionRow.number.desc())):
                if row.number != default:
                    others.setdefault(row.model, []).append(row)
            return [
                (row.model, row.number)
                for known in others.values()
                for row in known[keep:]
                if max(row.created_at, row.used_at or 0.0) < unused_since
            ]

    def engines_due(self, unused_since: float) -> list[str]:
        """A name for each stored engine that no server used since this time, or whose version is gone."""
        with self._catalog.look() as session:
            found = session.scalars(sa.select(EngineRow).where(_unused(unused_since)))
            return [_engine(row) for row in found if row.files]

    def drop_engines(self, unused_since: float) -> list[str]:
        """Forgets those engines: whoever needs one compiles it again."""
        with self._catalog.turn() as session:
            due = [
                row for row in session.scalars(sa.select(EngineRow).where(_unused(unused_since))) if row.files
            ]
            for row in due:
                session.delete(row)
            return [_engine(row) for row in due]

    def note_use(self, used: Iterable[Key], loaded: Iterable[tuple[Key, str]]) -> None:
        """Notes which versions answered requests lately, and which are in memory on which kind of hardware."""
        now = time.time()
        # Several rows: beside another server that does the same, or deletes some, they would wait for each other.
        with self._catalog.turn() as session:
            for key in used:
                session.execute(sa.update(VersionRow).where(_is(VersionRow, key)).values(used_at=now))
            for key, hardware in loaded:
                there = _is(EngineRow, key) & (EngineRow.hardware == hardware)
                session.execute(sa.update(EngineRow).where(there).values(used_at=now))

    def published_builds(self) -> set[str]:
        """The builds whose versions there are."""
        with self._catalog.look() as session:
            return set(session.scalars(sa.select(VersionRow.build_id)))

    def forget_holds(self) -> None:
        """Forgets holds of processes that have died."""
        with self._catalog.change() as session:
            session.execute(sa.delete(HoldRow).where(HoldRow.held_at < clock() - HELD_S))


def _kept(session: Session, *, without: Container[str] = ()) -> set[str]:
    """What versions, engines and unfinished builds need, what is on its way, and uploads that may be looked into.

    Of the ended builds `without`, the samples are not counted.
    """
    kept = rows.digests(session)
    for digests in session.scalars(sa.select(HoldRow.digests).where(HoldRow.held_at >= clock() - HELD_S)):
        kept.update(digests)
    kept.update(kept_uploads(session, sa.true(), without=without))
    return kept


def kept_uploads(
    session: Session, of: sa.ColumnElement[bool], *, without: Container[str] = ()
) -> Iterator[str]:
    """What is still there of the uploads of ended builds, those for which `of` holds; without samples of `without`."""
    published = sa.and_(BuildRow.state == BuildState.SUCCEEDED, _has_version())
    fruitless = BuildRow.state.in_((BuildState.FAILED, BuildState.CANCELLED))
    ended = sa.select(BuildRow.id, BuildRow.files, BuildRow.samples_removed_at).where(
        of, published | fruitless
    )
    for build_id, files, samples_removed_at in session.execute(ended):
        yield from _uploaded(files, samples=samples_removed_at is None and build_id not in without)


def _uploaded(files: dict[str, str], *, samples: bool) -> list[str]:
    return [
        digest
        for name, digest in files.items()
        if name.startswith(UPLOAD) and (samples or not name.startswith(OF_SAMPLES))
    ]


def _samples(row: BuildRow) -> set[str]:
    return {digest for name, digest in row.files.items() if name.startswith(OF_SAMPLES)}


def _has_version() -> sa.ColumnElement[bool]:
    return sa.exists().where(VersionRow.build_id == BuildRow.id)


def _fruitless(ended_before: float) -> sa.ColumnElement[bool]:
    return sa.and_(
        BuildRow.state.not_in(UNFINISHED), BuildRow.finished_at < ended_before, sa.not_(_has_version())
    )


def _unused(since: float) -> sa.ColumnElement[bool]:
    """Engines without use, but for those of a default, which may be needed at any time; and those without a version."""
    default = sa.exists().where(
        ModelRow.name == EngineRow.model, ModelRow.default_version == EngineRow.number
    )
    version = sa.exists().where(VersionRow.model == EngineRow.model, VersionRow.number == EngineRow.number)
    unused = sa.func.coalesce(EngineRow.used_at, EngineRow.changed_at) < since
    # Who was compiling while the version was deleted leaves one without.
    return (unused & ~default) | ~version


def _engine(row: EngineRow) -> str:
    return f"{row.model}/{row.number} on {row.hardware}"


def _is(row: type[VersionRow] | type[EngineRow], key: Key) -> sa.ColumnElement[bool]:
    return sa.and_(row.model == key[0], row.number == key[1])
