import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from service.catalog.records import Samples
from service.retention import periodic
from service.retention.periodic import PeriodicSweeps
from service.retention.sweeper import Sweeper
from tests.unit.service.kept import SAMPLES, uploaded
from tests.unit.service.live_server import serving, until


class Stub:
    """Counts, and fails as often as it is told to."""

    def __init__(self, *, failures: int = 0) -> None:
        self.sweeps: list[float] = []
        self.looks = 0
        self.failures = failures
        self.swept = threading.Event()

    def remove_samples_at_once(self) -> None:
        self.looks += 1

    def sweep_when_due(self) -> None:
        self.sweeps.append(time.monotonic())
        if len(self.sweeps) <= self.failures:
            raise OSError("the disk is away")
        self.swept.set()


def started(stub: Stub, every_s: float) -> PeriodicSweeps:
    sweeps = PeriodicSweeps(cast("Sweeper", cast("Any", stub)), every_s=every_s)
    sweeps.start()
    return sweeps


def test_sweeps_come_again_and_again_and_not_too_often() -> None:
    stub = Stub()
    sweeps = started(stub, 0.05)
    deadline = time.monotonic() + 10
    while len(stub.sweeps) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeps.stop()
    sweeps.stop()
    pauses = [after - before for before, after in zip(stub.sweeps, stub.sweeps[1:], strict=False)]
    assert len(pauses) >= 3
    assert min(pauses) >= 0.05


def test_a_sweep_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    stub = Stub(failures=2)
    with caplog.at_level(logging.ERROR):
        sweeps = started(stub, 0.01)
        assert stub.swept.wait(10)
        sweeps.stop()
    assert caplog.text.count("a sweep failed") == 2


def test_samples_are_looked_for_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "AT_ONCE_S", 0.01)
    stub = Stub()
    sweeps = started(stub, 3600.0)
    deadline = time.monotonic() + 10
    while stub.looks < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeps.stop()
    assert stub.looks >= 3
    assert not stub.sweeps


def test_after_the_end_nothing_comes() -> None:
    stub = Stub()
    sweeps = started(stub, 0.01)
    assert stub.swept.wait(10)
    sweeps.stop()
    sweeps._thread.join(10)
    count = len(stub.sweeps)
    time.sleep(0.05)
    assert len(stub.sweeps) == count


@pytest.mark.parametrize("worker", [True, False])
async def test_a_server_sweeps_where_it_keeps_no_worker(tmp_path: Path, *, worker: bool) -> None:
    async with serving(tmp_path, settings={"worker": worker, "sweep_every_s": 0.1}) as server:
        catalog, store = server.context.catalog, server.context.store
        build = uploaded(catalog, store, "a", samples=Samples.DELETE)
        catalog.cancel(build.id)
        if worker:
            await asyncio.sleep(0.5)
            assert store.has(build.files[SAMPLES])
        else:
            await until(lambda: not store.has(build.files[SAMPLES]))
