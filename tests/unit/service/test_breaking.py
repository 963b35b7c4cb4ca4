"""Engines that fail, and versions that crashed the server."""

import asyncio

import pytest

from engines.errors import EngineRunError
from loadtests.awaiting import submit
from service.catalog.catalog import Catalog, Version
from service.errors import NotReadyError
from service.serving.loading import subject_of
from service.serving.quarantine import CrashLog
from service.serving.residency import VersionState
from tests.unit.service.echo_engine import POISON
from tests.unit.service.followed import Loader, answering, following, publish, until


def crash(loader: Loader, *running: Version) -> None:
    """What the supervisor notes when a server dies while these run."""
    CrashLog(loader.home / "crashes.json").add(map(subject_of, running), cause="SIGSEGV")


async def test_an_engine_that_fails_on_a_request_alone_goes_on(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "m") == "1")
        batcher = deployments.find("m").batcher
        engine = loader.engines["m", 1]
        with pytest.raises(EngineRunError, match="poisoned"):
            await submit(batcher, {"x": loader.rows(POISON)})
        # It was tried on its proof, once, and answered.
        await until(lambda: len(engine.batches) == 2)
        with pytest.raises(EngineRunError, match="poisoned"):
            await submit(batcher, {"x": loader.rows(POISON)})
        await asyncio.sleep(0.05)
        assert len(engine.batches) == 3
        assert answering(deployments, "m") == "1"
        assert (await submit(batcher, {"x": loader.rows(4)}))["first"].tolist() == [[4]]


async def test_an_engine_that_keeps_failing_is_taken_out_and_tried_again_later(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    publish(catalog, "other")
    async with following(catalog, loader, retry_s=0.2) as deployments:
        await until(lambda: deployments.ready)
        engine = loader.engines["m", 1]
        engine.broken.set()
        with pytest.raises(EngineRunError):
            await submit(deployments.find("m").batcher, {"x": loader.rows(1)})
        await until(lambda: deployments.status("m", 1).state is VersionState.FAILED)
        with pytest.raises(
            NotReadyError, match=r"its engine keeps failing, on a row of its proof too \(the device is gone\)"
        ):
            deployments.find("m")
        with pytest.raises(NotReadyError):
            deployments.promised("m")
        assert answering(deployments, "other") == "1"
        assert deployments.ready
        await until(lambda: answering(deployments, "m") == "1")
        assert engine.closed == 1
        assert loader.engines["m", 1] is not engine


async def test_one_failure_of_a_probe_is_none(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        engine = loader.engines["m", 1]
        engine.broken.set()
        with pytest.raises(EngineRunError):
            await submit(deployments.find("m").batcher, {"x": loader.rows(1)})
        await asyncio.sleep(0.05)
        engine.broken.clear()
        await asyncio.sleep(0.5)
        assert answering(deployments, "m") == "1"
        assert engine.closed == 0


async def test_a_version_blamed_once_is_loaded_last_and_readiness_does_not_wait_for_it(
    catalog: Catalog, loader: Loader
) -> None:
    suspect = publish(catalog, "a")
    publish(catalog, "b")
    crash(loader, suspect)
    loader.held.add(("a", 1))
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        assert loader.calls == [("b", 1), ("a", 1)]
        loader.gate.set()
        await until(lambda: answering(deployments, "a") == "1")


async def test_a_version_blamed_twice_is_quarantined(catalog: Catalog, loader: Loader) -> None:
    guilty = publish(catalog, "m")
    innocent = publish(catalog, "n")
    crash(loader, guilty, innocent)
    crash(loader, guilty)
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        assert loader.calls == [("n", 1)]
        status = deployments.status("m", 1)
        assert status.state is VersionState.QUARANTINED
        with pytest.raises(
            NotReadyError,
            match="version 1 of model 'm' is quarantined: the server crashed 2 times while this version ran",
        ):
            await deployments.obtain("m")
        with pytest.raises(NotReadyError):
            deployments.promised("m")


async def test_a_new_version_of_a_quarantined_model_is_served(catalog: Catalog, loader: Loader) -> None:
    guilty = publish(catalog, "m")
    crash(loader, guilty)
    crash(loader, guilty)
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.status("m", 1).state is VersionState.QUARANTINED)
        publish(catalog, "m")
        await until(lambda: answering(deployments, "m") == "2")
        assert deployments.status("m", 1).state is VersionState.QUARANTINED
        assert loader.calls == [("m", 2)]


async def test_bringing_a_model_back_lifts_its_quarantine(catalog: Catalog, loader: Loader) -> None:
    guilty = publish(catalog, "m")
    crash(loader, guilty)
    crash(loader, guilty)
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.status("m", 1).state is VersionState.QUARANTINED)
        await deployments.bring_back("m")
        assert answering(deployments, "m") == "1"
    assert CrashLog(loader.home / "crashes.json").quarantined == {}


async def test_what_answered_most_before_is_loaded_first(catalog: Catalog, loader: Loader) -> None:
    for model in ("a", "b", "c"):
        publish(catalog, model)
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        for model, batches in (("a", 1), ("b", 3), ("c", 2)):
            for _ in range(batches):
                await submit(deployments.find(model).batcher, {"x": loader.rows(1)})
    loader.calls.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        assert loader.calls == [("b", 1), ("c", 1), ("a", 1)]
