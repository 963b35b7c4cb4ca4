"""Tables of the catalog, and the database engine that keeps them durable."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

WRITES = {"octet_writes": True}
"""Execution option of a connection whose transaction writes: SQLite then takes its write lock at the start,
and what was read inside the transaction still holds when it commits."""

BUSY_TIMEOUT_MS = 30_000
_RETRY_S = 0.01


class Base(DeclarativeBase):
    """Base of the mapped tables."""

    type_annotation_map = {dict[str, Any]: JSON, dict[str, str]: JSON, dict[str, float]: JSON}  # noqa: RUF012 - SQLAlchemy reads it as declared


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


class RevisionRow(Base):
    """One row that counts the changes to published versions and defaults."""

    __tablename__ = "revision"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


def create_engine(url: str) -> sa.Engine:
    """An engine whose commits survive a power cut: SQLite in WAL mode with full synchronisation."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    return engine


def create_tables(engine: sa.Engine) -> None:
    """Creates what is missing, in one transaction, so that processes may start at the same time."""
    with engine.execution_options(**WRITES).begin() as connection:
        Base.metadata.create_all(connection)
        if connection.scalar(sa.select(RevisionRow.value)) is None:
            connection.execute(sa.insert(RevisionRow).values(id=1, value=0))


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
