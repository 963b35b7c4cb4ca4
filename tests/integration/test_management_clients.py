"""What NVIDIA's client asks beside inference: health, metadata, configuration, statistics, repository."""

import asyncio
from pathlib import Path

import tritonclient.http.aio

from tests.integration.triton_client import ROWS, in_thread, tensor
from tests.unit.service.echo_engine import POISON
from tests.unit.service.live_server import serving, until


async def test_the_server_and_its_models_are_described(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await in_thread(server, lambda client: client.is_server_live())
        assert await in_thread(server, lambda client: client.is_server_ready())
        assert await in_thread(server, lambda client: client.is_model_ready("echo", "1"))
        assert not await in_thread(server, lambda client: client.is_model_ready("nobody"))
        described = await in_thread(server, lambda client: client.get_server_metadata())
        assert {"binary_tensor_data", "model_repository", "statistics"} <= set(described["extensions"])
        metadata = await in_thread(server, lambda client: client.get_model_metadata("echo"))
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        config = await in_thread(server, lambda client: client.get_model_config("echo", "1"))
        assert config["max_batch_size"] == 8
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}]
        assert "dynamic_batching" in config


async def test_models_are_unloaded_and_loaded(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        ready = {"name": "echo", "version": "1", "state": "READY", "reason": ""}
        assert await in_thread(server, lambda client: client.get_model_repository_index()) == [ready]
        await in_thread(server, lambda client: client.unload_model("echo"))
        assert not await in_thread(server, lambda client: client.is_model_ready("echo"))
        (entry,) = await in_thread(server, lambda client: client.get_model_repository_index())
        assert entry["state"] == "UNAVAILABLE"
        await in_thread(server, lambda client: client.load_model("echo"))
        assert await in_thread(server, lambda client: client.is_model_ready("echo"))
        result = await in_thread(server, lambda client: client.infer("echo", [tensor(ROWS)]))
        assert result.as_numpy("first").tolist() == [[3], [5]]


async def test_statistics_are_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for _ in range(3):
            await in_thread(server, lambda client: client.infer("echo", [tensor(ROWS)]))
        await server.infer(POISON)
        (entry,) = (await in_thread(server, lambda client: client.get_inference_statistics("echo", "1")))[
            "model_stats"
        ]
        assert (entry["name"], entry["version"]) == ("echo", "1")
        assert (entry["inference_count"], entry["execution_count"]) == (6, 3)
        counts = {name: duration["count"] for name, duration in entry["inference_stats"].items()}
        assert counts == {
            "success": 3,
            "fail": 1,
            "queue": 3,
            "compute_input": 3,
            "compute_infer": 3,
            "compute_output": 3,
            "cache_hit": 0,
            "cache_miss": 0,
        }
        assert entry["inference_stats"]["success"]["ns"] > entry["inference_stats"]["compute_infer"]["ns"] > 0
        assert await in_thread(server, lambda client: client.get_inference_statistics()) == {
            "model_stats": [entry]
        }


async def test_the_asynchronous_client_manages_too(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        assert await client.is_server_live()
        assert (await client.get_server_metadata())["name"] == "octet"
        assert (await client.get_model_metadata("echo"))["versions"] == ["1"]
        assert (await client.get_model_config("echo"))["max_batch_size"] == 8
        assert (await client.get_inference_statistics("echo"))["model_stats"][0]["inference_count"] == 0
        assert [entry["state"] for entry in await client.get_model_repository_index()] == ["READY"]
        await client.unload_model("echo")
        assert not await client.is_model_ready("echo")
        await client.load_model("echo")
        assert await client.is_model_ready("echo", "1")


async def test_a_client_that_gives_up_waiting_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.gate.clear()
        async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            waiting = asyncio.create_task(client.infer("echo", [tensor(ROWS)]))
            await asyncio.to_thread(server.engine.entered.wait, 10)
            other = asyncio.create_task(server.infer(1))
            await until(lambda: server.context.deployments.find("echo").batcher.queue_rows == 1)
            waiting.cancel()
        server.engine.gate.set()
        assert (await other).status == 200
