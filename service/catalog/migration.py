"""Brings the tables of the catalog up to what this code reads and writes.

Migrations only add, with defaults: code of the release before goes on while, and after, they run, which is what
lets machines be replaced one by one. Of processes that migrate at the same time, one does and the others wait.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from service.catalog.schema import WRITES, take_turn
from service.errors import StartError

HEAD = "0004"
"""The newest migration, as the file under `migrations/versions` names it; a test compares them."""
_MIGRATING = 0x6D696772617465
"""Name of PostgreSQL's lock: "migrate"."""
_ASK_EVERY_S = 0.2


def migrate(engine: sa.Engine) -> None:
    """Runs the migrations that are missing, in one transaction."""
    from alembic import command  # noqa: PLC0415 # most starts have nothing to migrate
    from alembic.config import Config  # noqa: PLC0415 # with it

    with engine.execution_options(**WRITES).begin() as connection:
        take_turn(connection)
        if _is_behind(revision_of(connection)):
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
            command.upgrade(config, "head")


@contextlib.contextmanager
def alone(engine: sa.Engine) -> Iterator[None]:
    """Waits until nobody else on a shared database migrates; others wait for us then.

    They ask again and again. A statement that waited for the lock would be a running one, and whoever has the lock
    would wait for it in turn: dbos makes indexes CONCURRENTLY, which begins when all that ran before has ended.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_MIGRATING))):
            time.sleep(_ASK_EVERY_S)
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATING)))


def check(engine: sa.Engine) -> None:
    """Refuses tables that are older than this code.

    A file of SQLite belongs to the octet that opens it, and is migrated instead.

    Raises:
        StartError: somebody has to run the migrations first.
    """
    with engine.connect() as connection:
        found = revision_of(connection)
    if not _is_behind(found):
        return
    if engine.dialect.name == "sqlite":
        migrate(engine)
        return
    raise StartError(
        f"the database has {f'the tables of revision {found}' if found else 'no tables of octet'} and this octet needs "
        f"{HEAD}; run octet migrate with the same OCTET_DATABASE_URL first."
    )


def revision_of(connection: sa.Connection) -> str | None:
    """The newest migration that has run, or None where none has."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def _is_behind(revision: str | None) -> bool:
    # Numbered, so that code recognises a revision which is newer than itself.
    return revision is None or revision < HEAD
