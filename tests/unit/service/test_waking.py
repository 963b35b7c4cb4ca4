"""Versions that come into memory when a request needs them, and leave it again."""

import asyncio
import time

import pytest

from engines.errors import EngineError
from loadtests.awaiting import submit
from service.catalog.catalog import Catalog
from service.errors import NotFoundError, NotReadyError, QueueFullError, StoppingError
from service.serving.residency import KEPT_VERSIONS, VersionState
from tests.unit.service.followed import Loader, answering, following, publish, until


async def test_a_request_waits_for_a_version_that_is_being_loaded(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        # Even before the server has looked at its catalog.
        request = asyncio.create_task(deployments.obtain("m"))
        await until(lambda: loader.calls == [("m", 1)])
        assert not request.done()
        loader.gate.set()
        assert (await request).version == "1"


async def test_what_requests_wait_for_is_loaded_first(catalog: Catalog, loader: Loader) -> None:
    for model in ("a", "b", "c"):
        publish(catalog, model)
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: len(loader.calls) == 1)
        request = asyncio.create_task(deployments.obtain("c"))
        await asyncio.sleep(0)
        loader.gate.set()
        assert (await request).model == "c"
        # Behind what was being loaded when the request came.
        assert ("c", 1) in loader.calls[:2]


async def test_a_request_waits_as_long_as_its_version_lets_requests_wait(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m", timeout_ms=50)
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("m", 1)])
        started_s = time.monotonic()
        with pytest.raises(NotReadyError, match="version 1 of model 'm' is loading"):
            await deployments.obtain("m")
        assert time.monotonic() - started_s >= 0.05


async def test_no_more_requests_wait_than_the_queue_holds(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m", max_queue_rows=2)
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("m", 1)])
        waiting = [asyncio.create_task(deployments.obtain("m")) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError, match="2 requests wait for model 'm' to be loaded"):
            await deployments.obtain("m")
        loader.gate.set()
        assert {deployment.version for deployment in await asyncio.gather(*waiting)} == {"1"}
        assert (await deployments.obtain("m")).version == "1"


async def test_nobody_waits_for_what_will_not_come(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    publish(catalog, "broken")
    loader.broken["broken", 1] = EngineError("too hot")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        with pytest.raises(NotReadyError, match="too hot"):
            await deployments.obtain("broken")
        with pytest.raises(NotFoundError):
            await deployments.obtain("nobody")
        with pytest.raises(NotFoundError):
            await deployments.obtain("m", "2")
        deployments.put_away("m")
        with pytest.raises(NotReadyError, match="unloaded on request"):
            await deployments.obtain("m")
        with pytest.raises(NotReadyError, match="unloaded on request"):
            deployments.promised("m")


async def test_who_waits_is_told_when_the_server_stops(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        request = asyncio.create_task(deployments.obtain("m"))
        await until(lambda: loader.calls == [("m", 1)])
        deployments.retire()
        with pytest.raises(StoppingError):
            await request


async def test_a_server_ends_although_a_version_is_being_loaded(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("m", 1)])
        await asyncio.wait_for(deployments.close(), 5)


async def test_an_old_version_is_loaded_by_the_request_that_names_it(
    catalog: Catalog, loader: Loader
) -> None:
    for _ in range(KEPT_VERSIONS + 2):
        publish(catalog, "m")
    async with following(catalog, loader) as deployments:
        await until(lambda: len(deployments.ready_versions("m")) == KEPT_VERSIONS + 1)
        assert deployments.status("m", 1).state is VersionState.UNLOADED
        assert deployments.promised("m", "1") == "1"
        assert (await deployments.obtain("m", "1")).version == "1"
        # It does not take anybody's place: there is room.
        assert len(deployments.ready_versions("m")) == KEPT_VERSIONS + 2


async def test_an_idle_version_leaves_and_the_next_request_brings_it_back(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    async with following(catalog, loader, idle_s=0.05) as deployments:
        await until(lambda: deployments.ready)
        await until(lambda: answering(deployments, "m") is None)
        await until(lambda: loader.engines["m", 1].closed == 1)
        status = deployments.status("m", 1)
        assert status.state is VersionState.UNLOADED
        assert "nobody used it for 0.05 s" in str(status.reason)
        # A client that asks first whether the model is ready has to be told to go on.
        assert deployments.promised("m") == "1"
        assert (await deployments.obtain("m")).version == "1"
        assert loader.calls == [("m", 1)] * 2


async def test_a_new_default_of_a_sleeping_model_takes_over(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    async with following(catalog, loader, idle_s=0.05) as deployments:
        await until(lambda: deployments.status("m", 1).state is VersionState.UNLOADED)
        publish(catalog, "m")
        await until(lambda: ("m", 2) in loader.calls)
        assert (await deployments.obtain("m")).version == "2"


async def test_the_least_recently_used_leave_where_memory_is_full(catalog: Catalog, loader: Loader) -> None:
    for model in ("a", "b", "c"):
        publish(catalog, model)
        loader.sizes_bytes[model, 1] = 100
    async with following(catalog, loader, max_bytes=250) as deployments:
        await until(lambda: deployments.ready)
        # At the start nobody takes another's place.
        assert [deployment.model for deployment in deployments.deployments()] == ["a", "b"]
        assert "memory is full" in str(deployments.status("c", 1).reason)
        await submit((await deployments.obtain("a")).batcher, {"x": loader.rows(1)})
        assert (await deployments.obtain("c")).model == "c"
        assert [deployment.model for deployment in deployments.deployments()] == ["a", "c"]
        await until(lambda: loader.engines["b", 1].closed == 1)
        assert (await deployments.obtain("b")).model == "b"
        assert [deployment.model for deployment in deployments.deployments()] == ["b", "c"]
        await until(lambda: loader.engines["a", 1].closed == 1)


async def test_where_memory_is_full_not_all_of_many_are_tried(catalog: Catalog, loader: Loader) -> None:
    models = [f"m{number:02}" for number in range(20)]
    for model in models:
        publish(catalog, model)
        loader.sizes_bytes[model, 1] = 100
    async with following(catalog, loader, max_bytes=250) as deployments:
        await until(lambda: deployments.ready)
        # Two that fit, and three that tell of the others.
        assert len(loader.calls) == 5
        assert len(deployments.deployments()) == 2
        untried = next(model for model in models if (model, 1) not in loader.calls)
        status = deployments.status(untried, 1)
        assert (status.state, status.reason) == (
            VersionState.UNLOADED,
            "memory is full; the next request loads it in place of others",
        )
        assert (await deployments.obtain(untried)).model == untried
        # A new default is as important as a request for it.
        publish(catalog, models[-1])
        await until(lambda: loader.calls[5:] == [(untried, 1), (models[-1], 2)])


async def test_a_version_that_never_fits_says_so(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "small")
    publish(catalog, "large")
    loader.sizes_bytes["large", 1] = 4 << 20
    async with following(catalog, loader, max_bytes=2 << 20) as deployments:
        await until(lambda: deployments.ready)
        assert answering(deployments, "small") == "1"
        with pytest.raises(
            NotReadyError, match="takes 4 MiB of memory, and all versions together may take 2 MiB"
        ):
            await deployments.obtain("large")
        assert answering(deployments, "small") == "1"


async def test_a_new_default_is_loaded_beside_the_one_that_answers_for_it_meanwhile(
    catalog: Catalog, loader: Loader
) -> None:
    for number in (1, 2):
        loader.sizes_bytes["m", number] = 100
    publish(catalog, "m")
    async with following(catalog, loader, max_bytes=150) as deployments:
        await until(lambda: answering(deployments, "m") == "1")
        loader.gate.clear()
        publish(catalog, "m")
        await until(lambda: loader.calls[-1] == ("m", 2))
        assert answering(deployments, "m") == "1"
        loader.gate.set()
        await until(lambda: answering(deployments, "m") == "2")
        await until(lambda: deployments.ready_versions("m") == ["2"])
