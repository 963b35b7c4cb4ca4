"""What goes of a queue in a file once builds have ended, with the real dbos."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS, SetWorkflowID

from engines.options import BuildOptions
from service.builds import ended_runs
from service.builds.ended_runs import forget_ended
from service.builds.workflow import QueuedRuns
from service.catalog.catalog import Catalog, NewBuild
from service.errors import CatalogUnavailableError


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Runs a workflow of this name to its end."""
    DBOS(
        config={
            "name": "octet",
            "system_database_url": f"sqlite:///{tmp_path / 'queue.db'}",
            "enable_otlp": False,
            "log_level": "WARNING",
        }
    )

    @DBOS.workflow(name="build")
    def build(build_id: str) -> None:
        DBOS.run_step({"name": "plan"}, lambda: build_id)

    def carried_out(name: str) -> None:
        with SetWorkflowID(name):
            build(name)

    DBOS.launch()
    yield carried_out
    DBOS.destroy(destroy_registry=True)


def accepted(catalog: Catalog) -> str:
    new = NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={})
    return catalog.accept(new, force=True)[0].id


def left(tmp_path: Path) -> dict[str, int]:
    """Rows of the queue's tables in which runs are."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'queue.db'}")
    tables = ("workflow_status", "operation_outputs", "workflow_input", "workflow_output")
    with engine.connect() as connection:
        counts = {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in tables
        }
    engine.dispose()
    return counts


def test_runs_go_with_all_that_is_kept_of_them_once_their_builds_have_ended(
    catalog: Catalog, run: Callable[[str], None], tmp_path: Path
) -> None:
    ended, goes_on = accepted(catalog), accepted(catalog)
    catalog.cancel(ended)
    # One of a build that a sweep has dropped, and two of one that began again with newer steps.
    for name in ("dropped", ended, f"{ended}.2", goes_on, f"{goes_on}.2"):
        run(name)
    assert forget_ended(catalog, QueuedRuns()) == 0
    assert forget_ended(catalog, QueuedRuns(), kept_s=-60.0) == 3
    assert {status.workflow_id for status in DBOS.list_workflows()} == {goes_on, f"{goes_on}.2"}
    assert max(left(tmp_path).values()) == 2
    catalog.cancel(goes_on)
    assert forget_ended(catalog, QueuedRuns(), kept_s=-60.0) == 2
    assert set(left(tmp_path).values()) == {0}


def test_the_queue_is_not_asked_while_the_database_is_away(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> int:
        raise CatalogUnavailableError("the database does not answer; see that it runs.")

    class Untouched:
        def ended(self, before: str, *, limit: int, offset: int) -> list[str]:
            pytest.fail(f"dbos would wait for it here: {before}, {limit}, {offset}")

        def delete(self, names: list[str]) -> None:
            pytest.fail(f"nothing was said of {names}")

    monkeypatch.setattr(catalog, "revision", away)
    with pytest.raises(CatalogUnavailableError):
        forget_ended(catalog, Untouched())


def test_all_are_seen_to_though_they_are_many_and_some_stay(
    catalog: Catalog, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_runs, "_AT_ONCE", 2)
    for number in range(7):
        run(accepted(catalog) if number in (0, 3, 4) else f"dropped {number}")
    assert forget_ended(catalog, QueuedRuns(), kept_s=-60.0) == 4
    assert len(DBOS.list_workflows()) == 3
