"""Tables of the catalog, and the database engine that keeps them durable."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, ForeignKey
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.catalog.connections import checked_arguments
from service.errors import CatalogUnavailableError, StorageFullError

WRITES = {"octet_writes": True}
"""Execution option of a connection whose transaction writes: SQLite then takes its write lock at the start,
and what was read inside the transaction still holds when it commits."""

BUSY_TIMEOUT_MS = 30_000
_RETRY_S = 0.01
_TURN = 0x6F63746574
"""Name of the lock that writers take in turn: "octet"."""
_DISK_FULL = "53100"
"""PostgreSQL's state for a disk, or a quota on it, that is used up."""
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite's codes for that; the second where a file cannot even be opened, for want of an index of its log."""


class Base(DeclarativeBase):
    """Base of the mapped tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as declared
        dict[str, Any]: JSON,
        dict[str, str]: JSON,
        dict[str, float]: JSON,
        list[str]: JSON,
    }


class ModelRow(Base):
    """A name that has, or had, versions."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    # The version that answers when a request names none.
    default_version: Mapped[int | None]
    # Numbers are never used twice, also after a version was deleted.
    next_version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]


class BuildRow(Base):
    """One accepted upload and what became of it."""

    __tablename__ = "builds"

    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(index=True)
    # What makes two uploads the same build.
    fingerprint: Mapped[str] = mapped_column(index=True)
    options: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(index=True)
    phase: Mapped[str | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    # Seconds that each finished phase took.
    timings: Mapped[dict[str, float]]
    # Workspace name -> digest: the upload, then what each finished phase wrote.
    files: Mapped[dict[str, str]]
    error: Mapped[str | None]
    code: Mapped[str | None]
    version: Mapped[int | None]
    created_at: Mapped[float] = mapped_column(index=True)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    # The kind of hardware whose workers are to build it; any kind where null.
    hardware: Mapped[str | None]
    # The queue's name of the run that carries it out; null while the queue does not know of it.
    run: Mapped[str | None]
    # Who carries it out now.
    worker: Mapped[str | None]
    # Raised whenever somebody begins, or takes over: what was claimed with a smaller number may write no more.
    claim: Mapped[int] = mapped_column(default=0, server_default="0")
    # What becomes of the samples. Not among the options: releases that do not know it read those. Null is to keep them.
    samples: Mapped[str | None]
    # When the samples were removed.
    samples_removed_at: Mapped[float | None]
    # The API key that it was uploaded with; null where none was asked for.
    key_id: Mapped[str | None] = mapped_column(index=True)


class VersionRow(Base):
    """One published result of a build."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    build_id: Mapped[str] = mapped_column(unique=True)
    files: Mapped[dict[str, str]]
    options: Mapped[dict[str, Any]]
    summary: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    # When a request was last answered, within minutes; null before the first.
    used_at: Mapped[float | None]


class WorkerRow(Base):
    """A worker that is there, or was until its beats stopped."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    hardware: Mapped[str]
    # Both on the database's clock.
    started_at: Mapped[float]
    beat_at: Mapped[float]


class EngineRow(Base):
    """A version compiled for one kind of hardware, or about to be."""

    __tablename__ = "engines"

    model: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    hardware: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    # Why it is refused.
    reason: Mapped[str | None]
    # Name in the engine cache -> digest.
    files: Mapped[dict[str, str]]
    # Who compiles it, and when that one was last heard of, on the database's clock.
    holder: Mapped[str | None]
    changed_at: Mapped[float]
    # When a server last had it in memory, within hours; null before the first.
    used_at: Mapped[float | None]


class HoldRow(Base):
    """Blobs that somebody is about to store and to name: no sweep removes them meanwhile."""

    __tablename__ = "holds"

    id: Mapped[str] = mapped_column(primary_key=True)
    digests: Mapped[list[str]]
    # On the database's clock.
    held_at: Mapped[float]


class SweepRow(Base):
    """One row: who sweeps for all, and when that was begun last."""

    __tablename__ = "sweeps"

    id: Mapped[int] = mapped_column(primary_key=True)
    # Null while nobody does.
    holder: Mapped[str | None]
    # Both on the database's clock: the last sign of life of the holder, and the last begin.
    beat_at: Mapped[float]
    begun_at: Mapped[float]


class KeyRow(Base):
    """An API key; what it opens with is not here."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    # Divided by spaces.
    scopes: Mapped[str]
    # SHA-256 of the key, in hexadecimal.
    digest: Mapped[str]
    created_at: Mapped[float]
    # Null is never.
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    # Null is no limit.
    requests_per_s: Mapped[float | None]
    max_builds: Mapped[int | None]
    max_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)


class RevisionRow(Base):
    """One row that counts the changes to published versions, defaults and keys."""

    __tablename__ = "revision"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


def create_engine(url: str) -> sa.Engine:
    """An engine whose commits survive a power cut: SQLite in WAL mode with full synchronisation."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed.set(drivername="postgresql+psycopg"), **checked_arguments())
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    return engine


def asking(engine: sa.Engine) -> sa.Engine:
    """An engine for single questions: with PostgreSQL without the begin and the end that take as long as the answer."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    return engine


def take_turn(connection: sa.Connection) -> None:
    """Waits until no other transaction that took its turn goes on; ends with the transaction.

    SQLite has one writer at a time anyway (`WRITES`). With PostgreSQL, what is rare and touches several rows is
    as simple that way; what is frequent changes one row and does not wait.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TURN)))


class clock(sa.sql.functions.FunctionElement[float]):  # noqa: N801 # reads as the SQL function that it is
    """The database's own time, in seconds since the epoch: machines may disagree about theirs."""

    type = sa.Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(_element: clock, _compiler: object, **_: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(_element: clock, _compiler: object, **_: object) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun by `_begin`; the driver's own habit leaves reads and DDL outside of them.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Chooses the write-ahead log, which stays with the file.

    SQLite does not wait for its busy timeout here: of two processes that open a new file at the same time, one
    is told at once that the database is locked.
    """
    deadline_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("octet_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns what a database raises that is away, or full, into our errors."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        said = " ".join(str(getattr(error, "orig", error)).split())[:200].rstrip(".")
        if _is_full(error.orig if isinstance(error, sa.exc.DBAPIError) else None):
            raise StorageFullError(
                f"the database has no room left ({said}); free some space on its disk and try again."
            ) from error
        raise CatalogUnavailableError(f"the database does not answer ({said}); try again later.") from error


def _is_full(error: BaseException | None) -> bool:
    """Whether SQLite, or PostgreSQL, says that there is no room."""
    return (
        getattr(error, "sqlstate", None) == _DISK_FULL or getattr(error, "sqlite_errorcode", None) in _NO_ROOM
    )
