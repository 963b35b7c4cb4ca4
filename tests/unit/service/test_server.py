import asyncio
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.server import connections_for, raise_open_files
from tests.unit.service.live_server import LiveServer, Reply, serving, until


async def under_way(live: LiveServer) -> asyncio.Task[Reply]:
    """A request that the engine holds until its gate is opened."""
    live.engine.gate.clear()
    admitted = asyncio.create_task(live.infer(1))
    await until(live.engine.entered.is_set)
    return admitted


@pytest.mark.parametrize(("files", "connections"), [(20_000, 19_488), (1024, 512), (256, 128)])
def test_some_files_are_kept_for_other_things_than_connections(files: int, connections: int) -> None:
    assert connections_for(files) == connections


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    earlier = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert raise_open_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, earlier)


async def test_a_request_is_answered_however_long_ago_the_signal_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later_s)
    monkeypatch.setattr("service.server.time", clock)
    async with serving(tmp_path, last_call=True, timeout_ms=3_600_000) as live:
        admitted = await under_way(live)
        live.server.handle_exit(signal.SIGTERM, None)
        later_s = 3599.0
        await asyncio.sleep(0.3)
        assert not live.server.should_exit
        live.engine.gate.set()
        assert (await admitted).status == 200
        await until(lambda: live.server.should_exit)


async def test_a_request_that_is_not_answered_in_time_holds_the_end_up_no_longer(tmp_path: Path) -> None:
    async with serving(tmp_path, last_call=True, timeout_ms=500) as live:
        admitted = await under_way(live)
        live.server.handle_exit(signal.SIGTERM, None)
        assert (await admitted).status == 504
        await until(lambda: live.server.should_exit)


async def test_a_request_of_a_version_that_was_unloaded_meanwhile_is_answered_before_the_end(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, last_call=True) as live:
        admitted = await under_way(live)
        live.context.deployments.put_away("echo")
        await until(lambda: live.context.deployments.get("echo") is None)
        live.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.5)
        assert not live.server.should_exit
        live.engine.gate.set()
        assert (await admitted).status == 200
        await until(lambda: live.server.should_exit)


async def test_an_end_that_hangs_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = threading.Event()
    monkeypatch.setattr("service.server.os._exit", lambda _status: cut.set())
    async with serving(tmp_path) as live:
        live.server.ends_within_s = 0.1
    assert cut.wait(5)
