import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.schema import SweepRow, clock
from service.catalog.sweeps import HOLD_S, Sweeps


def test_one_sweeps_at_a_time(any_catalog: Catalog) -> None:
    first, second = Sweeps(any_catalog), Sweeps(any_catalog)
    assert first.begin(every_s=0.0)
    assert not second.begin(every_s=0.0)
    first.end()
    assert second.begin(every_s=0.0)


def test_nobody_sweeps_before_it_is_due(any_catalog: Catalog) -> None:
    sweeps = Sweeps(any_catalog)
    assert sweeps.begin(every_s=3600.0)
    sweeps.end()
    assert not sweeps.begin(every_s=3600.0)
    change(any_catalog, begun_at=clock() - 3601)
    assert sweeps.begin(every_s=3600.0)


def test_a_sweep_whose_process_died_is_taken_over_and_its_end_ends_no_other(any_catalog: Catalog) -> None:
    dead, other = Sweeps(any_catalog), Sweeps(any_catalog)
    assert dead.begin(every_s=0.0)
    change(any_catalog, beat_at=clock() - HOLD_S + 10)
    assert not other.begin(every_s=0.0)
    change(any_catalog, beat_at=clock() - HOLD_S - 10)
    assert other.begin(every_s=0.0)
    dead.end()
    assert not dead.begin(every_s=0.0)


def test_signs_of_life_keep_it(any_catalog: Catalog) -> None:
    slow, other = Sweeps(any_catalog), Sweeps(any_catalog)
    assert slow.begin(every_s=0.0)
    change(any_catalog, beat_at=clock() - HOLD_S - 10)
    slow.beat()
    assert not other.begin(every_s=0.0)


def change(catalog: Catalog, **values: object) -> None:
    with catalog.change() as session:
        session.execute(sa.update(SweepRow).values(**values))
