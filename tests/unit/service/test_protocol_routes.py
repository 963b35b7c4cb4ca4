"""The protocol over HTTP, where it is more than the codec: headers, codings, and what clients read beside."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from engines.options import Batching, Precision
from service.app import create_app
from service.batching.batch_sizes import BatchRules
from service.protocol import Signature
from service.routes.configuration import configuration
from service.serving.deployment import Deployment
from service.settings import Settings
from tests.unit.service.echo_engine import POISON, EchoEngine
from tests.unit.service.live_server import LiveServer, Reply, echo_body, read_reply, request, serving

INFER = "/v2/models/echo/infer"
JSON_BYTES = "Inference-Header-Content-Length"
ROWS = np.array([[3, 3], [5, 5]], np.float32)


def binary_body(**parameters: Any) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    text = orjson.dumps({"inputs": [entry], "parameters": parameters})
    return text + ROWS.tobytes(), {JSON_BYTES: str(len(text))}


async def ask(server: LiveServer, body: bytes, headers: dict[str, str]) -> Reply:
    return await server.ask("POST", INFER, body, headers)


async def test_binary_outputs_come_after_the_json_whose_length_a_header_tells(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reply = await ask(server, *binary_body(binary_data_output=True))
        assert reply.headers["content-type"] == "application/octet-stream"
        size = int(reply.headers[JSON_BYTES.lower()])
        outputs = orjson.loads(reply.body[:size])["outputs"]
        assert [output["parameters"]["binary_data_size"] for output in outputs] == [16, 8]
        assert reply.body[size:] == (2 * ROWS).tobytes() + ROWS[:, 0].tobytes()


async def test_json_outputs_come_without_that_header(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        reply = await ask(server, *binary_body())
        assert reply.headers["content-type"] == "application/json"
        assert JSON_BYTES.lower() not in reply.headers
        assert reply.json["outputs"][1] == {
            "name": "first",
            "datatype": "FP32",
            "shape": [2, 1],
            "data": [3, 5],
        }


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
async def test_a_compressed_body_is_unpacked_before_its_json_is_measured(
    tmp_path: Path, coding: str, pack: Any
) -> None:
    async with serving(tmp_path) as server:
        body, headers = binary_body()
        reply = await ask(server, pack(body), {**headers, "Content-Encoding": coding})
        assert reply.json["outputs"][1]["data"] == [3, 5]


@pytest.mark.parametrize("accepted", ["gzip", "deflate"])
async def test_answers_are_compressed_when_asked_for_and_worth_it(tmp_path: Path, accepted: str) -> None:
    async with serving(tmp_path, max_queue_rows=4096) as server:
        large = echo_body(*([1.0] * 1000))
        reply = await ask(server, large, {"Accept-Encoding": accepted})
        assert reply.headers["content-encoding"] == accepted
        assert reply.headers["vary"] == "accept-encoding"
        text = (gzip.decompress if accepted == "gzip" else zlib.decompress)(reply.body)
        assert len(orjson.loads(text)["outputs"][1]["data"]) == 1000
        for body, headers in (
            (large, {}),
            (large, {"Accept-Encoding": "br"}),
            (echo_body(1), {"Accept-Encoding": "gzip"}),
        ):
            assert "content-encoding" not in (await ask(server, body, headers)).headers


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        (
            {"Content-Encoding": "br"},
            415,
            "the body has Content-Encoding br, and only gzip and deflate are read",
        ),
        ({"Content-Encoding": "gzip, gzip"}, 415, "Content-Encoding gzip, gzip"),
        ({JSON_BYTES: "-1"}, 400, "the header Inference-Header-Content-Length is -1; send a number of bytes"),
        ({JSON_BYTES: "1e3"}, 400, "is 1e3; send a number of bytes"),
        ({JSON_BYTES: "9" * 5000}, 400, "is 99999"),
        ({JSON_BYTES: ""}, 400, "is ; send a number of bytes"),
        ({"Content-Length": "2000000"}, 413, "the body has 2000000 bytes and may have 1048576"),
    ],
)
async def test_headers_are_checked_before_the_body_is_read(
    tmp_path: Path, headers: dict[str, str], status: int, words: str
) -> None:
    async with serving(tmp_path) as server:
        reader, writer = await server.connect()
        # A body is announced and does not come; nor is leave given to send it.
        writer.write(
            request("POST", INFER, b"", {"Content-Length": "100", "Expect": "100-continue", **headers})
        )
        reply = await read_reply(reader)
        assert (reply.status, set(reply.json)) == (status, {"error", "code"})
        assert words in reply.json["error"]
        assert len(reply.json["error"]) < 300
        writer.close()


async def test_what_a_body_unpacks_to_has_the_same_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, max_body_bytes=5000) as server:
        for size, status in ((4000, 200), (6000, 413), (50_000_000, 413)):
            body = echo_body(1).ljust(size)
            reply = await ask(server, gzip.compress(body), {"Content-Encoding": "gzip"})
            assert reply.status == status, size


async def test_lengths_of_json_beyond_the_body_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        body = echo_body(1)
        reply = await ask(server, body, {JSON_BYTES: str(len(body) + 1)})
        assert (reply.status, reply.json["code"]) == (400, "request.invalid")
        assert (await ask(server, body, {JSON_BYTES: str(len(body))})).status == 200


async def test_statistics_have_every_part_that_perf_analyzer_reads(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.infer(1, 2, 3)
        await server.infer(4)
        await server.infer(POISON)
        for path in ("/v2/models/stats", "/v2/models/echo/stats", "/v2/models/echo/versions/1/stats"):
            (entry,) = (await server.ask("GET", path)).json["model_stats"]
            assert (entry["name"], entry["version"]) == ("echo", "1")
            assert (entry["inference_count"], entry["execution_count"]) == (4, 2)
            assert entry["last_inference"] > 1_700_000_000_000
            parts = entry["inference_stats"]
            assert {name: part["count"] for name, part in parts.items()} == {
                "success": 2,
                "fail": 1,
                "queue": 2,
                "compute_input": 2,
                "compute_infer": 2,
                "compute_output": 2,
                "cache_hit": 0,
                "cache_miss": 0,
            }
            within = sum(
                parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")
            )
            assert 0 < parts["compute_infer"]["ns"] < within < parts["success"]["ns"]


async def test_statistics_go_on_after_a_model_was_loaded_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.infer(1)
        await server.ask("POST", "/v2/repository/models/echo/unload")
        assert (await server.ask("GET", "/v2/models/stats")).json == {"model_stats": []}
        assert (await server.ask("GET", "/v2/models/echo/stats")).status == 503
        assert (await server.ask("POST", "/v2/repository/models/echo/load", b"{}")).status == 200
        await server.infer(1)
        (entry,) = (await server.ask("GET", "/v2/models/echo/stats")).json["model_stats"]
        assert entry["inference_count"] == 2


def deployed(tmp_path: Path, *, batchable: bool) -> Deployment:
    engine = EchoEngine((None, 3))
    metrics = create_app(Settings(home=tmp_path)).state.octet.metrics
    unused: Any = None
    return Deployment(
        model="m",
        version="7",
        signature=Signature.of(engine.inputs, engine.outputs, free_rows=batchable),
        precision=Precision.INT8,
        batcher=unused,
        limits=Batching(max_queue_delay_us=50, max_queue_rows=99, timeout_ms=2000),
        rules=BatchRules(batchable=batchable, sizes=(1, 16)),
        metrics=metrics.of("m", "7"),
        engine=unused,
        sample={},
        memory_bytes=0,
    )


def test_the_configuration_of_a_batched_model_leaves_the_batch_out_of_its_shapes(tmp_path: Path) -> None:
    config = configuration(deployed(tmp_path, batchable=True))
    assert config["max_batch_size"] == 16
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert config["version_policy"] == {"specific": {"versions": [7]}}
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 50
    assert config["dynamic_batching"]["default_queue_policy"] == {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": 2_000_000,
        "allow_timeout_override": True,
        "max_queue_size": 99,
    }


def test_the_configuration_of_a_model_that_is_not_batched_says_so(tmp_path: Path) -> None:
    config = configuration(deployed(tmp_path, batchable=False))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [-1, -1, 3]
    assert "dynamic_batching" not in config


async def test_the_repository_lists_what_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        path, only = "/v2/repository/index", b'{"ready": true}'
        assert [entry["state"] for entry in (await server.ask("POST", path)).json] == ["READY"]
        assert (await server.ask("POST", "/v2/repository/models/echo/unload")).status == 200
        (entry,) = (await server.ask("POST", path)).json
        assert (entry["state"], entry["version"]) == ("UNAVAILABLE", "1")
        assert "unloaded on request" in entry["reason"]
        assert (await server.ask("POST", path, only)).json == []
        reply = await server.infer(1)
        assert (reply.status, reply.json["code"]) == (503, "model.not_ready")
        assert (await server.ask("GET", "/v2/health/ready")).status == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("index", b"[]", "[] came where an object was expected"),
        ("index", b"{", "the body is not JSON"),
        ("models/echo/load", b'{"parameters": 3}', "3 came where an object was expected"),
        ("models/echo/load", b'{"parameters": {"config": "{}"}}', 'takes no parameters, and ["config"] came'),
        ("models/echo/unload", b"3", "3 came where an object was expected"),
    ],
)
async def test_the_repository_refuses_what_it_does_not_understand(
    tmp_path: Path, path: str, body: bytes, words: str
) -> None:
    async with serving(tmp_path) as server:
        reply = await server.ask("POST", f"/v2/repository/{path}", body)
        assert (reply.status, reply.json["code"]) == (400, "request.invalid")
        assert words in reply.json["error"]
        assert (await server.infer(1)).status == 200
