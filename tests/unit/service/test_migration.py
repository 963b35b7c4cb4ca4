import re
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.catalog import migration
from service.catalog.catalog import BuildState, Catalog
from service.catalog.migration import HEAD, migrate
from service.catalog.schema import Base
from service.errors import StartError
from tests.databases import PostgreSQL, opened

FOLDER = Path(migration.__file__).with_name("migrations") / "versions"
# The tables as octet made them before it had migrations.
FIRST = """
CREATE TABLE models (name VARCHAR NOT NULL, default_version INTEGER, next_version INTEGER NOT NULL,
    created_at DOUBLE NOT NULL, PRIMARY KEY (name));
CREATE TABLE builds (id VARCHAR NOT NULL, model VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL, options JSON NOT NULL,
    state VARCHAR NOT NULL, phase VARCHAR, progress DOUBLE NOT NULL, timings JSON NOT NULL, files JSON NOT NULL,
    error VARCHAR, code VARCHAR, version INTEGER, created_at DOUBLE NOT NULL, started_at DOUBLE, finished_at DOUBLE,
    PRIMARY KEY (id));
CREATE INDEX ix_builds_created_at ON builds (created_at);
CREATE INDEX ix_builds_fingerprint ON builds (fingerprint);
CREATE INDEX ix_builds_model ON builds (model);
CREATE INDEX ix_builds_state ON builds (state);
CREATE TABLE versions (model VARCHAR NOT NULL, number INTEGER NOT NULL, build_id VARCHAR NOT NULL, files JSON NOT NULL,
    options JSON NOT NULL, summary JSON NOT NULL, created_at DOUBLE NOT NULL, PRIMARY KEY (model, number),
    FOREIGN KEY(model) REFERENCES models (name), UNIQUE (build_id));
CREATE TABLE revision (id INTEGER NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (id));
INSERT INTO revision VALUES (1, 7);
INSERT INTO models VALUES ('m', 1, 2, 1.5);
"""
INSERT_BUILD = """
INSERT INTO builds (id, model, fingerprint, options, state, progress, timings, files, created_at)
VALUES ('%s', 'm', 'f', '{}', '%s', 0.5, '{}', '{"upload/model.onnx": "sha256:a"}', 2.5)
"""
INSERT_VERSION = """
INSERT INTO versions (model, number, build_id, files, options, summary, created_at)
VALUES ('m', 1, 'done', '{"prepared.onnx": "sha256:p"}', '{}', '{"sqnr_db": 41.5}', 3.5)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_database()


def execute(url: str, script: str) -> None:
    with opened(url) as engine, engine.begin() as connection:
        for statement in script.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def columns(url: str) -> dict[str, dict[str, tuple[str, bool]]]:
    """Table -> column -> its type and whether it may be null."""
    with opened(url) as engine:
        seen = sa.inspect(engine)
        return {
            table: {
                column["name"]: (type(column["type"]).__name__, bool(column["nullable"]))
                for column in seen.get_columns(table)
            }
            for table in seen.get_table_names()
            if table != "alembic_version"
        }


def indexes(url: str) -> set[tuple[str, str]]:
    with opened(url) as engine:
        seen = sa.inspect(engine)
        return {
            (table, ",".join(str(name) for name in index["column_names"]))
            for table in seen.get_table_names()
            for index in seen.get_indexes(table)
        }


def test_migrations_make_the_tables_that_the_code_declares(url: str, request: pytest.FixtureRequest) -> None:
    with opened(url) as engine:
        migrate(engine)
    migrated = (columns(url), indexes(url))
    other = url
    if url.startswith("postgresql"):
        other = request.getfixturevalue("postgresql_server").new_database()
    else:
        other = url.replace("catalog.db", "declared.db")
    with opened(other) as engine:
        Base.metadata.create_all(engine)
    assert migrated == (columns(other), indexes(other))


def test_a_home_from_before_migrations_keeps_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    execute(url, FIRST)
    execute(
        url,
        f"{INSERT_BUILD % ('going-on', 'running')};{INSERT_BUILD % ('done', 'succeeded')};{INSERT_VERSION}",
    )
    catalog = Catalog(url)
    assert catalog.revision() == 7
    assert catalog.build("going-on").state is BuildState.RUNNING
    assert catalog.build("going-on").progress == 0.5
    version = catalog.version("m", 1)
    assert (version.summary, version.default) == ({"sqnr_db": 41.5}, True)
    assert catalog.publish("going-on", files={}, summary={}).number == 2
    catalog.close()
    assert set(columns(url)["builds"]) == set(Base.metadata.tables["builds"].columns.keys())


def test_code_from_before_goes_on_with_the_new_tables(url: str) -> None:
    with opened(url) as engine:
        migrate(engine)
    execute(url, "INSERT INTO models VALUES ('m', NULL, 1, 1.5)")
    execute(url, f"{INSERT_BUILD % ('done', 'succeeded')};{INSERT_VERSION}")
    catalog = Catalog(url)
    assert catalog.build("done").state is BuildState.SUCCEEDED
    assert catalog.version("m", 1).build_id == "done"
    catalog.close()


def test_migrating_twice_changes_nothing(url: str) -> None:
    for _ in range(2):
        with opened(url) as engine:
            migrate(engine)
    with opened(url) as engine, engine.connect() as connection:
        assert migration.revision_of(connection) == HEAD
        assert connection.scalar(sa.text("SELECT count(*) FROM revision")) == 1


def test_of_many_that_migrate_at_the_same_time_one_does(url: str) -> None:
    barrier = threading.Barrier(6)
    done: list[str] = []

    def run() -> None:
        with opened(url) as engine:
            barrier.wait()
            migrate(engine)
            done.append("done")

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 6


def test_a_migration_that_fails_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(url, "CREATE TABLE engines (id INTEGER)")
    with opened(url) as engine, pytest.raises(sa.exc.SQLAlchemyError):
        migrate(engine)
    assert set(columns(url)) == {"engines"}


def test_a_shared_database_is_not_migrated_by_whoever_comes(postgresql_server: PostgreSQL) -> None:
    url = postgresql_server.new_database()
    with pytest.raises(StartError, match=rf"has no tables of octet .* needs {HEAD}; run octet migrate"):
        Catalog(url)
    with opened(url) as engine:
        migrate(engine)
    execute(url, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(
        StartError, match=rf"has the tables of revision 0001 .* needs {HEAD}; run octet migrate"
    ):
        Catalog(url)
    # Somebody has begun to replace the machines: those that are still to come go on.
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    Catalog(url).close()


def test_the_newest_migration_is_the_one_that_the_code_needs() -> None:
    revisions = [
        re.search(r'^revision = "(\d{4})"$', path.read_text(), re.MULTILINE)
        for path in sorted(FOLDER.glob("v*.py"))
    ]
    numbers = [found.group(1) for found in revisions if found]
    assert len(numbers) == len(revisions)
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert numbers[-1] == HEAD
