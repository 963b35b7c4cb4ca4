"""Inference with NVIDIA's client, against a live server."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from service.protocol import DATATYPES
from tests.integration.triton_client import ROWS, in_thread, tensor, wanted
from tests.unit.service.live_server import serving
from tests.unit.service.typed_engine import TypedEngine

# As this client knows them: it takes BF16 for FP32 rows, each cut to its upper half.
NUMBERS = sorted(set(DATATYPES) - {"BF16", "BYTES"})


async def test_binary_both_ways_is_this_client_s_own_choice(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        result = await in_thread(server, lambda client: client.infer("echo", [tensor(ROWS)], request_id="me"))
        assert (result.as_numpy("double") == 2 * ROWS).all()
        assert result.as_numpy("first").tolist() == [[3], [5]]
        response = result.get_response()
        assert (response["model_name"], response["model_version"], response["id"]) == ("echo", "1", "me")
        assert response["outputs"][0]["parameters"] == {"binary_data_size": 16}


@pytest.mark.parametrize("sent", [True, False])
async def test_json_and_binary_mix(tmp_path: Path, sent: bool) -> None:
    async with serving(tmp_path) as server:
        outputs = [wanted("first", binary=True), wanted("double", binary=False)]
        result = await in_thread(
            server, lambda client: client.infer("echo", [tensor(ROWS, binary=sent)], outputs=outputs)
        )
        assert [output["name"] for output in result.get_response()["outputs"]] == ["first", "double"]
        assert "data" in result.get_output("double")
        assert (result.as_numpy("double") == 2 * ROWS).all()
        assert result.as_numpy("first").tolist() == [[3], [5]]


@pytest.mark.parametrize("sent", ["gzip", "deflate", None])
@pytest.mark.parametrize("received", ["gzip", "deflate", None])
async def test_compression_both_ways(tmp_path: Path, sent: str | None, received: str | None) -> None:
    rows = np.repeat(np.arange(600, dtype=np.float32)[:, None], 2, axis=1)
    async with serving(tmp_path, max_queue_rows=1000) as server:
        result = await in_thread(
            server,
            lambda client: client.infer(
                "echo",
                [tensor(rows)],
                request_compression_algorithm=sent,
                response_compression_algorithm=received,
            ),
        )
        assert (result.as_numpy("double") == 2 * rows).all()


@pytest.mark.parametrize("datatype", NUMBERS)
async def test_every_number_travels_as_binary_data(tmp_path: Path, datatype: str) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(DATATYPES[datatype])
    async with serving(tmp_path, engine=TypedEngine(datatype)) as server:
        result = await in_thread(
            server, lambda client: client.infer("echo", [tensor(values, datatype=datatype)])
        )
        seen = result.as_numpy("same")
        assert (seen.dtype, seen.tolist()) == (values.dtype, values.tolist())
        assert result.as_numpy("empty").shape == (3, 0)


@pytest.mark.parametrize("datatype", sorted(set(NUMBERS) - {"FP16"}))
async def test_every_number_travels_in_json(tmp_path: Path, datatype: str) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(DATATYPES[datatype])
    async with serving(tmp_path, engine=TypedEngine(datatype)) as server:
        result = await in_thread(
            server,
            lambda client: client.infer(
                "echo",
                [tensor(values, binary=False, datatype=datatype)],
                outputs=[wanted("same", binary=False)],
            ),
        )
        assert "data" in result.get_output("same")
        seen = result.as_numpy("same")
        assert (seen.dtype, seen.tolist()) == (values.dtype, values.tolist())


async def test_half_floats_are_refused_in_json_both_ways(tmp_path: Path) -> None:
    values = np.ones((1, 2), np.float16)
    async with serving(tmp_path, engine=TypedEngine("FP16")) as server:
        with pytest.raises(InferenceServerException, match="FP16") as refusal:
            await in_thread(
                server,
                lambda client: client.infer(
                    "echo", [tensor(values, datatype="FP16")], outputs=[wanted("same", binary=False)]
                ),
            )
        assert refusal.value.status() == "400"


@pytest.mark.parametrize("binary", [True, False])
async def test_strings_travel_both_ways(tmp_path: Path, binary: bool) -> None:
    values = np.array([[b"one", "zw\u00f6lf".encode()]], np.object_)
    async with serving(tmp_path, engine=TypedEngine("BYTES")) as server:
        result = await in_thread(
            server,
            lambda client: client.infer(
                "echo",
                [tensor(values, binary=binary, datatype="BYTES")],
                outputs=[wanted("same", binary=binary)],
            ),
        )
        seen = result.as_numpy("same").tolist()
        assert [element.encode() if isinstance(element, str) else element for element in seen[0]] == values[
            0
        ].tolist()


async def test_brain_floats_travel_as_binary_data(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0]], DATATYPES["BF16"])
    # This client takes them as single precision, and cuts off the lower half.
    single = np.array([[1.5, -2.0]], np.float32)
    head = {"name": "x", "shape": [1, 2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
    text = orjson.dumps({"inputs": [head], "parameters": {"binary_data_output": True}})
    async with serving(tmp_path, engine=TypedEngine("BF16")) as server:
        reply = await server.ask(
            "POST",
            "/v2/models/echo/infer",
            text + values.tobytes(),
            {"Inference-Header-Content-Length": str(len(text))},
        )
        assert reply.status == 200
        size = int(reply.headers["inference-header-content-length"])
        assert orjson.loads(reply.body[:size])["outputs"][0]["datatype"] == "BF16"
        assert reply.body[size:] == values.tobytes()
        result = await in_thread(
            server, lambda client: client.infer("echo", [tensor(single, datatype="BF16")])
        )
        assert result.as_numpy("same").tolist() == single.tolist()


async def test_a_large_tensor_comes_back_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((3, 200_000), np.float32)
    async with serving(tmp_path, engine=TypedEngine("FP32", (200_000,)), max_body_bytes=1 << 23) as server:
        plain = await in_thread(server, lambda client: client.infer("echo", [tensor(values)]))
        assert (plain.as_numpy("same") == values).all()
        packed = await in_thread(
            server,
            lambda client: client.infer("echo", [tensor(values)], response_compression_algorithm="gzip"),
        )
        assert (packed.as_numpy("same") == values).all()


async def test_versions_timeouts_and_priorities_are_understood(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        result = await in_thread(
            server,
            lambda client: client.infer(
                "echo", [tensor(ROWS)], model_version="1", priority=2, timeout=5_000_000, sequence_id=3
            ),
        )
        assert result.get_response()["model_version"] == "1"
        server.engine.gate.clear()
        with pytest.raises(InferenceServerException, match="no answer within") as late:
            await in_thread(server, lambda client: client.infer("echo", [tensor(ROWS)], timeout=10_000))
        assert late.value.status() == "504"


async def test_calls_that_do_not_wait_are_all_answered(tmp_path: Path) -> None:
    def ask(client: Any) -> list[float]:
        calls = [
            client.async_infer("echo", [tensor(np.full((1, 2), value, np.float32))]) for value in range(9)
        ]
        return [call.get_result().as_numpy("first").item() for call in calls]

    async with serving(tmp_path) as server:
        assert await in_thread(server, ask) == list(range(9))


def classified(name: str) -> Any:
    return tritonclient.http.InferRequestedOutput(name, class_count=1)


def in_shared_memory() -> Any:
    entry = tritonclient.http.InferInput("x", list(ROWS.shape), "FP32")
    entry.set_shared_memory("region", ROWS.nbytes)
    return entry


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (lambda client: client.infer("nobody", [tensor(ROWS)]), "404", "there is no model 'nobody'"),
        (lambda client: client.infer("echo", [tensor(ROWS)], model_version="9"), "404", "no version '9'"),
        (lambda client: client.infer("echo", [tensor(ROWS[:, :1])]), "400", r"input 'x' has shape \[2,1\]"),
        (lambda client: client.infer("echo", [tensor(-ROWS / ROWS)]), "500", "a poisoned row"),
        (
            lambda client: client.infer("echo", [tensor(np.zeros((50_000, 2), np.float32))]),
            "413",
            "may have 100000",
        ),
        (lambda client: client.get_model_metadata("nobody"), "404", "there is no model 'nobody'"),
        (lambda client: client.get_model_config("nobody"), "404", "there is no model 'nobody'"),
        (lambda client: client.get_inference_statistics("nobody"), "404", "there is no model 'nobody'"),
        (lambda client: client.load_model("nobody"), "404", "there is no model 'nobody'"),
        (lambda client: client.unload_model("nobody"), "404", "there is no model 'nobody'"),
        (lambda client: client.load_model("echo", config="{}"), "400", "loading takes no parameters"),
        (lambda client: client.infer("echo", [tensor(ROWS[:0])]), "400", "send at least one row"),
        (lambda client: client.infer("echo", [tensor(ROWS), tensor(ROWS)]), "400", "'x' is sent twice"),
        (
            lambda client: client.infer("echo", [tensor(ROWS)], outputs=[classified("double")]),
            "400",
            "output 'double' has the parameter classification, which octet does not take",
        ),
        (
            lambda client: client.infer("echo", [in_shared_memory()]),
            "400",
            "input 'x' has the parameter shared_memory_region, which octet does not take",
        ),
        (lambda client: client.get_log_settings(), "404", "there is nothing at /v2/logging"),
        (
            lambda client: client.get_trace_settings("echo"),
            "404",
            "there is nothing at /v2/models/echo/trace",
        ),
        (lambda client: client.get_cuda_shared_memory_status(), "404", "there is nothing at /v2/cuda"),
    ],
)
async def test_errors_reach_the_client_in_words(
    tmp_path: Path, call: Callable[[Any], Any], status: str, words: str
) -> None:
    async with serving(tmp_path, max_body_bytes=100_000) as server:
        with pytest.raises(InferenceServerException, match=words) as refusal:
            await in_thread(server, call)
        assert refusal.value.status() == status


async def test_the_asynchronous_client_works_too(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        assert await client.is_server_ready()
        answers = await asyncio.gather(
            *(client.infer("echo", [tensor(np.full((2, 2), value, np.float32))]) for value in range(20))
        )
        assert [answer.as_numpy("first")[0, 0] for answer in answers] == list(range(20))
        packed = await client.infer(
            "echo",
            [tensor(ROWS, binary=False)],
            outputs=[wanted("double", binary=False)],
            request_compression_algorithm="deflate",
            response_compression_algorithm="gzip",
        )
        assert (packed.as_numpy("double") == 2 * ROWS).all()
        with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
            await client.infer("nobody", [tensor(ROWS)])
