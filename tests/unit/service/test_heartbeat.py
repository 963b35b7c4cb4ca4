import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.options import BuildOptions
from service.builds.heartbeat import Heartbeat
from service.builds.leases import Leases
from service.catalog.catalog import Catalog, NewBuild
from service.errors import CatalogUnavailableError, ServiceError, StorageFullError

PATIENCE_S = 30.0


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


class Counting(Leases):
    """Beats that are counted, and of which some may fail."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, worker="a", hardware="h")
        self.beats = threading.Semaphore(0)
        self.away: ServiceError | None = None

    def beat(self) -> None:
        self.beats.release()
        if self.away:
            raise self.away
        super().beat()

    def wait(self, beats: int) -> None:
        for _ in range(beats):
            assert self.beats.acquire(timeout=PATIENCE_S)


def test_it_beats_until_it_is_stopped(catalog: Catalog) -> None:
    leases = Counting(catalog)
    heart = Heartbeat(leases, give_way=pytest.fail, every_s=0.01)
    heart.start()
    leases.wait(5)
    assert heart.steady
    heart.stop()
    assert not heart.beating


@pytest.mark.parametrize("away", [CatalogUnavailableError("away."), StorageFullError("full.")])
def test_after_a_time_without_a_database_others_are_not_judged(catalog: Catalog, away: ServiceError) -> None:
    leases = Counting(catalog)
    heart = Heartbeat(leases, give_way=pytest.fail, every_s=0.01)
    heart.start()
    leases.away = away
    leases.wait(5)
    assert not heart.steady
    leases.away = None
    leases.wait(5)
    assert not heart.steady, "they get a lease to beat again"
    heart.stop()


def test_a_worker_whose_build_was_claimed_gives_way(catalog: Catalog) -> None:
    leases, gave_way = Counting(catalog), threading.Event()
    new = NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={})
    build_id = catalog.accept(new)[0].id
    leases.claim(build_id, build_id)
    heart = Heartbeat(leases, give_way=gave_way.set, every_s=0.01)
    heart.start()
    leases.wait(5)
    assert not gave_way.is_set()
    Leases(catalog, worker="b", hardware="h").claim(build_id, build_id)
    assert gave_way.wait(PATIENCE_S)
    heart.stop()
