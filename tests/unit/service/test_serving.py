import asyncio
from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineError, InvalidArtifactError
from engines.options import Precision
from loadtests.awaiting import submit
from service.catalog.catalog import Catalog
from service.errors import NotFoundError, NotReadyError
from service.monitoring.metrics import Metrics
from service.serving.deployments import Deployments
from service.serving.residency import KEPT_VERSIONS, VersionState
from tests.unit.service.followed import Loader, answering, care, following, publish, until


async def test_a_server_that_has_not_read_the_catalog_yet_denies_no_model(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    deployments = Deployments(catalog=catalog, metrics=Metrics(), load=loader, care=care(loader.home))
    with pytest.raises(NotReadyError, match="has just started"):
        deployments.find("m")


async def test_an_empty_server_is_ready_and_knows_no_model(catalog: Catalog, loader: Loader) -> None:
    async with following(catalog, loader) as deployments:
        assert not deployments.ready
        await until(lambda: deployments.ready)
        with pytest.raises(NotFoundError, match="there is no model 'digits'; GET /v1/models lists"):
            deployments.find("digits")


async def test_engines_on_a_gpu_share_it_apart_from_the_processors(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "cpu")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "cpu") == "1")
        loader.on_gpu = True
        for name in ("first", "second"):
            publish(catalog, name)
        await until(lambda: {answering(deployments, name) for name in ("first", "second")} == {"1"})
        devices = {name: deployments.find(name).batcher._device for name in ("cpu", "first", "second")}
    assert devices["first"] is devices["second"] is not devices["cpu"]
    assert (devices["first"].lanes, devices["cpu"].lanes) == (2, 1)


async def test_a_version_below_its_contract_answers_and_says_so(catalog: Catalog, loader: Loader) -> None:
    metrics = Metrics()
    publish(catalog, "low", verdict="below_contract", reason="it misses; it serves all the same.")
    publish(catalog, "high", verdict="accepted")
    async with following(catalog, loader, metrics=metrics) as deployments:
        await until(lambda: {answering(deployments, name) for name in ("low", "high")} == {"1"})
        status = deployments.status("low", 1)
        assert (status.state, status.precision) == (VersionState.READY, Precision.INT8)
        assert status.reason == "it misses; it serves all the same."
        assert deployments.status("high", 1).reason is None
        for model, value in (("low", 1), ("high", 0)):
            labels = {"model": model, "version": "1"}
            assert metrics.registry.get_sample_value("octet_version_below_contract", labels) == value


async def test_serves_what_is_published_by_name_and_by_version(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        deployment = deployments.find("digits", "1")
        assert deployment is deployments.find("digits")
        outputs = await submit(deployment.batcher, {"x": np.full((1, 2), 4, np.float32)})
        assert outputs["first"].tolist() == [[4]]
        assert deployments.status("digits", 1).state is VersionState.READY
        assert deployments.status("digits", 1).precision is Precision.INT8
        assert deployments.ready_versions("digits") == ["1"]


async def test_notices_a_version_published_while_it_runs(catalog: Catalog, loader: Loader) -> None:
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        publish(catalog, "digits")
        await until(lambda: answering(deployments, "digits") == "1")


async def test_is_ready_only_after_the_models_that_it_found(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("digits", 1)])
        assert not deployments.ready
        with pytest.raises(NotReadyError, match="version 1 of model 'digits' is loading; try again later"):
            deployments.find("digits")
        loader.gate.set()
        await until(lambda: deployments.ready)
        assert answering(deployments, "digits") == "1"


async def test_readiness_does_not_depend_on_a_model_that_comes_later(
    catalog: Catalog, loader: Loader
) -> None:
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        loader.gate.clear()
        publish(catalog, "digits")
        await until(lambda: loader.calls == [("digits", 1)])
        assert deployments.ready


async def test_readiness_does_not_wait_for_a_model_that_fails(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "broken")
    loader.broken["broken", 1] = InvalidArtifactError("the file is gone; build again.")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        with pytest.raises(
            NotReadyError, match="version 1 of model 'broken' is failed: the file is gone; build again"
        ):
            deployments.find("broken")


async def test_a_failed_version_is_tried_again(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    loader.broken["digits", 1] = OSError("no room")
    async with following(catalog, loader, retry_s=0.01) as deployments:
        await until(lambda: len(loader.calls) >= 2)
        loader.broken.clear()
        await until(lambda: answering(deployments, "digits") == "1")


async def test_a_new_default_takes_over_only_when_it_is_warm(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        loader.gate.clear()
        publish(catalog, "digits")
        await until(lambda: loader.calls[-1] == ("digits", 2))
        assert answering(deployments, "digits") == "1"
        loader.gate.set()
        await until(lambda: answering(deployments, "digits") == "2")
        assert answering(deployments, "digits", "1") == "1"


async def test_an_earlier_default_goes_on_where_the_new_one_fails(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    loader.broken["digits", 2] = EngineError("no")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        publish(catalog, "digits")
        await until(lambda: deployments.status("digits", 2).state is VersionState.FAILED)
        assert answering(deployments, "digits") == "1"


async def test_rolling_back_is_immediate(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready_versions("digits") == ["1", "2"])
        assert answering(deployments, "digits") == "2"
        catalog.set_default("digits", 1)
        await until(lambda: answering(deployments, "digits") == "1")
        assert sorted(loader.calls) == [("digits", 1), ("digits", 2)]


async def test_requests_in_flight_on_the_old_engine_are_answered(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        engine = loader.engines["digits", 1]
        engine.gate.clear()
        batcher = deployments.find("digits").batcher
        task = asyncio.create_task(submit(batcher, {"x": np.full((1, 2), 4, np.float32)}))
        await until(engine.entered.is_set)
        publish(catalog, "digits")
        await until(lambda: answering(deployments, "digits") == "2")
        catalog.delete_version("digits", 1)
        await until(lambda: answering(deployments, "digits", "1") is None)
        assert engine.closed == 0
        engine.gate.set()
        assert (await task)["first"].tolist() == [[4]]
        await until(lambda: engine.closed == 1)


async def test_a_deleted_version_answers_for_its_model_until_the_default_can(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        loader.gate.clear()
        publish(catalog, "digits")
        catalog.delete_version("digits", 1)
        await until(lambda: loader.calls[-1] == ("digits", 2))
        assert answering(deployments, "digits") == "1"
        loader.gate.set()
        await until(lambda: answering(deployments, "digits") == "2")
        await until(lambda: loader.engines["digits", 1].closed == 1)


async def test_a_deleted_model_is_unloaded(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    metrics = Metrics()
    async with following(catalog, loader, metrics=metrics) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        assert metrics.registry.get_sample_value("octet_models_loaded") == 1
        catalog.delete_model("digits")
        await until(lambda: loader.engines["digits", 1].closed == 1)
        assert metrics.registry.get_sample_value("octet_models_loaded") == 0
        with pytest.raises(NotFoundError):
            deployments.find("digits")


async def test_a_model_deleted_while_it_loads_is_closed(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("digits", 1)])
        catalog.delete_model("digits")
        await until(lambda: deployments.ready)
        loader.gate.set()
        await until(lambda: ("digits", 1) in loader.engines and loader.engines["digits", 1].closed == 1)
        assert answering(deployments, "digits") is None


async def test_a_refused_engine_is_shown_with_its_reason(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    loader.refused["digits", 1] = "SQNR is 3 dB here, 20 dB were promised."
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        status = deployments.status("digits", 1)
        assert (status.state, status.precision) == (VersionState.REFUSED, Precision.FP32)
        assert status.reason == "SQNR is 3 dB here, 20 dB were promised."


async def test_old_versions_are_not_kept_in_memory(catalog: Catalog, loader: Loader) -> None:
    for _ in range(KEPT_VERSIONS + 2):
        publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: len(deployments.ready_versions("digits")) == KEPT_VERSIONS + 1)
        assert deployments.status("digits", 1).state is VersionState.UNLOADED
        with pytest.raises(NotReadyError, match="version 1 of model 'digits' is unloaded"):
            deployments.find("digits", "1")


@pytest.mark.parametrize("version", ["7", "x", "-1", "1.0", "", "9" * 5000])
async def test_names_the_versions_that_there_are(catalog: Catalog, loader: Loader, version: str) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        with pytest.raises(NotFoundError, match=f"model 'digits' has no version '{version[:80]}'; it has 1"):
            deployments.find("digits", version)


async def test_a_server_that_is_about_to_stop_is_not_ready_but_answers(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        deployments.retire()
        assert not deployments.ready
        assert answering(deployments, "digits") == "1"


async def test_closing_closes_every_engine_once(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "a")
    publish(catalog, "b")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.ready)
        await deployments.close()
        await deployments.close()
    assert [engine.closed for engine in loader.engines.values()] == [1, 1]


async def test_a_catalog_that_cannot_be_read_for_a_while_changes_nothing(
    catalog: Catalog, loader: Loader, tmp_path: Path
) -> None:
    publish(catalog, "digits")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        database = tmp_path / "catalog.db"
        catalog.close()
        aside = database.rename(tmp_path / "aside.db")
        database.write_bytes(b"this is no database, " * 100)
        await asyncio.sleep(0.05)
        assert answering(deployments, "digits") == "1"
        catalog.close()
        aside.replace(database)
        publish(catalog, "digits")
        await until(lambda: answering(deployments, "digits") == "2")


async def test_shows_what_the_report_measured_while_it_is_loaded(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "digits")
    metrics, labels = Metrics(), {"model": "digits", "version": "1"}
    async with following(catalog, loader, metrics=metrics) as deployments:
        await until(lambda: answering(deployments, "digits") == "1")
        assert metrics.registry.get_sample_value("octet_version_sqnr_db", labels) == 33
    assert metrics.registry.get_sample_value("octet_version_sqnr_db", labels) is None


async def test_a_model_that_is_put_away_stays_so_until_it_is_brought_back(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    publish(catalog, "other")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "m") == "1" and answering(deployments, "other") == "1")
        first = loader.engines["m", 1]
        deployments.put_away("m")
        with pytest.raises(NotReadyError, match="unloaded: it was unloaded on request"):
            deployments.find("m")
        await until(lambda: first.closed == 1)
        publish(catalog, "m")
        await until(
            lambda: (
                deployments.status("m", 2).state is VersionState.UNLOADED
                and bool(deployments.status("m", 2).reason)
            )
        )
        assert loader.calls.count(("m", 1)) == 1
        assert [(d.model, d.version) for d in deployments.deployments()] == [("other", "1")]
        await deployments.bring_back("m")
        assert answering(deployments, "m") == "2"
        assert answering(deployments, "other") == "1"
        assert [d.version for d in deployments.deployments("other")] == ["1"]


async def test_bringing_a_model_back_tries_again_at_once_and_says_why_it_fails(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    loader.broken["m", 1] = EngineError("too hot")
    async with following(catalog, loader) as deployments:
        await until(lambda: deployments.status("m", 1).state is VersionState.FAILED)
        with pytest.raises(NotReadyError, match="too hot"):
            await deployments.bring_back("m")
        assert loader.calls == [("m", 1)] * 2
        loader.broken.clear()
        await deployments.bring_back("m")
        assert answering(deployments, "m") == "1"


async def test_an_unknown_model_is_neither_put_away_nor_brought_back(
    catalog: Catalog, loader: Loader
) -> None:
    publish(catalog, "m")
    async with following(catalog, loader) as deployments:
        await until(lambda: answering(deployments, "m") == "1")
        with pytest.raises(NotFoundError, match="no model 'nobody'"):
            deployments.put_away("nobody")
        with pytest.raises(NotFoundError, match="no model 'nobody'"):
            await deployments.bring_back("nobody")


async def test_a_model_put_away_while_it_loads_does_not_stay(catalog: Catalog, loader: Loader) -> None:
    publish(catalog, "m")
    loader.gate.clear()
    async with following(catalog, loader) as deployments:
        await until(lambda: loader.calls == [("m", 1)])
        deployments.put_away("m")
        loader.gate.set()
        await until(lambda: ("m", 1) in loader.engines and loader.engines["m", 1].closed == 1)
        assert answering(deployments, "m") is None
