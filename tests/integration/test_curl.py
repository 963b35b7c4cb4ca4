"""What people type: curl, with every kind of body."""

import asyncio
import gzip
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from tests.unit.service.live_server import echo_body, serving

ROWS = np.array([[3, 3], [5, 5]], np.float32)


async def curl(*arguments: str, body: bytes = b"") -> bytes:
    command = shutil.which("curl")
    if command is None:
        pytest.skip("curl is not installed")

    def run() -> bytes:
        whole = [command, "--silent", "--show-error", "--max-time", "20", *arguments]
        return subprocess.run(whole, input=body, capture_output=True, check=True).stdout

    return await asyncio.to_thread(run)


async def test_curl_sends_json_raw_bytes_and_compressed_bodies(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        url = f"http://127.0.0.1:{server.port}/v2/models/echo/infer"
        values = [float(value) for value in range(200)]
        body = echo_body(*values)
        flat = orjson.loads(await curl("--data-binary", "@-", url, body=body))
        assert flat["outputs"][1]["data"] == values
        packed = await curl("--compressed", "--data-binary", "@-", url, body=body)
        assert orjson.loads(packed) == flat
        raw = await curl(
            *("-H", "Inference-Header-Content-Length: 0", "-H", "Content-Type: application/octet-stream"),
            *("--data-binary", "@-", url),
            body=ROWS[:1].tobytes(),
        )
        assert raw.endswith((2 * ROWS[:1]).tobytes() + ROWS[0, :1].tobytes())
        # A body of some size makes curl ask for a leave to send it: 100 Continue.
        large = echo_body(*([1.0] * 1000))
        waiting = await curl("-H", "Expect: 100-continue", "--data-binary", "@-", url, body=large)
        assert len(orjson.loads(waiting)["outputs"][1]["data"]) == 1000


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_curl_sends_compressed_binary_tensors_whose_header_counts_them_unpacked(
    tmp_path: Path, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    entry = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    text = orjson.dumps({"inputs": [entry], "outputs": [{"name": "double"}]})
    async with serving(tmp_path) as server:
        answer = await curl(
            *("-H", f"Content-Encoding: {coding}", "-H", f"Inference-Header-Content-Length: {len(text)}"),
            *("--data-binary", "@-", f"http://127.0.0.1:{server.port}/v2/models/echo/infer"),
            body=pack(text + ROWS.tobytes()),
        )
        assert orjson.loads(answer)["outputs"][0]["data"] == [6, 6, 10, 10]


async def test_curl_sends_a_body_without_a_length(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await curl(
            *("-H", "Transfer-Encoding: chunked", "--data-binary", "@-"),
            f"http://127.0.0.1:{server.port}/v2/models/echo/infer",
            body=echo_body(4),
        )
        assert orjson.loads(answer)["outputs"][1]["data"] == [4]


async def test_curl_sees_the_error_and_its_status(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await curl(
            *("--include", "-H", "X-Request-ID: mine", "-d", "{"),
            f"http://127.0.0.1:{server.port}/v2/models/echo/infer",
        )
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 400")
        assert b"x-request-id: mine" in head.lower()
        assert "not JSON" in orjson.loads(body)["error"]
