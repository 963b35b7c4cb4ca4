"""The server as a process: how it starts, refuses to start, and ends."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest

from tests.unit.service.live_server import read_reply, request


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(home: Path, port: int, **settings: str) -> Process:
    environment = {"OCTET_HOME": str(home), "OCTET_PORT": str(port), **settings}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.server", env=os.environ | environment, stdout=DEVNULL, stderr=PIPE
    )


async def status_of(port: int, path: str) -> int | None:
    """The status that a GET gets, or None where nobody listens."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return None
    writer.write(request("GET", path))
    reply = await read_reply(reader)
    writer.close()
    return reply.status


async def until_ready(port: int) -> None:
    async with asyncio.timeout(60):
        while await status_of(port, "/v2/health/ready") != 200:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_server_with_success(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    process = await start(tmp_path, port)
    await until_ready(port)
    # An idle keep-alive connection must not hold it up.
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, errors.decode()
    assert await status_of(port, "/v2/health/live") is None
    writer.close()


async def test_all_that_it_writes_is_json_one_object_a_line(tmp_path: Path) -> None:
    port = free_port()
    process = await start(tmp_path, port, OCTET_ACCESS_LOG="1")
    await until_ready(port)
    assert await status_of(port, "/v2/models/nobody/infer") == 405
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    lines = [json.loads(line) for line in errors.decode().splitlines()]
    assert {line["role"] for line in lines} == {"server"}
    last = lines[-1]
    assert (last["logger"], last["status"]) == ("service.monitoring.observer", 405)
    assert last["message"] == "GET /v2/models/nobody/infer 405"
    assert last["request_id"]


async def test_a_body_that_is_still_coming_is_answered_before_the_end(tmp_path: Path) -> None:
    port = free_port()
    process = await start(tmp_path, port)
    await until_ready(port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = request("PUT", "/v1/models/m/default", b'{"version": 1}', {"Content-Type": "application/json"})
    writer.write(whole[:-5])
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    writer.write(whole[-5:])
    assert (await read_reply(reader)).status == 404
    writer.close()
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, errors.decode()


async def test_a_setting_that_cannot_be_is_one_sentence_and_a_failure(tmp_path: Path) -> None:
    process = await start(tmp_path, free_port(), OCTET_MAX_BODY_BYTES="many")
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == os.EX_CONFIG
    assert "OCTET_MAX_BODY_BYTES cannot be 'many'" in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_port_that_is_taken_is_a_failure(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await start(tmp_path, taken.getsockname()[1])
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode not in (0, None)
    assert "address already in use" in errors.decode()
    assert "Traceback" not in errors.decode()
