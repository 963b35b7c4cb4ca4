import threading

import pytest
import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.holds import HELD_S, Holds
from service.catalog.retention import Retention
from service.catalog.schema import HoldRow, clock
from service.errors import CatalogUnavailableError


def test_what_is_held_is_not_removed_and_may_be_afterwards(any_catalog: Catalog) -> None:
    retention, removed = Retention(any_catalog), list[str]()
    with Holds(any_catalog).hold(["sha256:a", "sha256:a", "sha256:b"]):
        assert retention.kept() == {"sha256:a", "sha256:b"}
        assert retention.remove_unnamed(["sha256:a", "sha256:c"], removed.extend) == {"sha256:c"}
    assert removed == ["sha256:c"]
    assert retention.kept() == set()
    assert retention.remove_unnamed(["sha256:a"], removed.extend) == {"sha256:a"}


def test_holds_of_several_do_not_end_each_other(any_catalog: Catalog) -> None:
    holds = Holds(any_catalog)
    with holds.hold(["sha256:a"]):
        with holds.hold(["sha256:a"]):
            pass
        assert Retention(any_catalog).kept() == {"sha256:a"}


def test_what_a_killed_process_held_is_let_go_of_after_a_day(any_catalog: Catalog) -> None:
    hold = Holds(any_catalog).hold(["sha256:a"])
    age(any_catalog, HELD_S - 60)
    Retention(any_catalog).forget_holds()
    assert Retention(any_catalog).kept() == {"sha256:a"}
    age(any_catalog, HELD_S + 60)
    assert Retention(any_catalog).kept() == set()
    Retention(any_catalog).forget_holds()
    with any_catalog.look() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(HoldRow)) == 0
    with hold:
        pass


def test_holding_nothing_needs_no_database(any_catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_catalog, "turn", None)
    with Holds(any_catalog).hold([]):
        pass


def test_a_hold_waits_for_a_removal_that_goes_on(any_catalog: Catalog) -> None:
    """Whoever holds a blob after it was removed stores it after it was removed."""
    order: list[str] = []
    removing, go_on = threading.Event(), threading.Event()

    def remove(_: object) -> None:
        removing.set()
        go_on.wait(10)
        order.append("removed")

    def store() -> None:
        with Holds(any_catalog).hold(["sha256:a"]):
            order.append("stored")

    sweep = threading.Thread(target=Retention(any_catalog).remove_unnamed, args=(["sha256:a"], remove))
    upload = threading.Thread(target=store)
    sweep.start()
    assert removing.wait(10)
    upload.start()
    upload.join(0.3)
    assert upload.is_alive()
    go_on.set()
    for thread in (sweep, upload):
        thread.join(10)
    assert order == ["removed", "stored"]


def test_a_database_that_goes_away_meanwhile_is_no_error_of_what_was_done(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise CatalogUnavailableError("the database does not answer; try again later.")

    with Holds(catalog).hold(["sha256:a"]):
        monkeypatch.setattr(catalog, "change", away)
    assert "may stay for a day longer" in caplog.text


def age(catalog: Catalog, seconds: float) -> None:
    with catalog.change() as session:
        session.execute(sa.update(HoldRow).values(held_at=clock() - seconds))
