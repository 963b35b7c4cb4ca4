"""KServe's inference client, where it is installed: it drags in so much that it has an environment of its own."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import ROOT
from tests.unit.service.live_server import serving

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
CALLS = Path(__file__).parent / "kserve_calls.py"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="KServe's client is not installed; `make clients` does that"
)


def calls(url: str) -> str:
    done = subprocess.run([PYTHON, CALLS, url], capture_output=True, check=False, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    async def asked() -> str:
        async with serving(tmp_path_factory.mktemp("kserve")) as server:
            return await asyncio.to_thread(calls, f"http://127.0.0.1:{server.port}")

    found: dict[str, Any] = json.loads(asyncio.run(asked()))
    return found


def test_it_reads_liveness_and_readiness(seen: dict[str, Any]) -> None:
    assert (seen["live"], seen["ready"]) == (True, True)
    assert (seen["model_ready"], seen["nobody_ready"]) == (True, False)


@pytest.mark.parametrize("form", ["json", "binary"])
def test_it_infers(seen: dict[str, Any], form: str) -> None:
    assert seen[form] == {
        "model": ["echo", "me"],
        "outputs": {"double": [[6, 6], [10, 10]], "first": [[3], [5]]},
    }


def test_it_gets_the_outputs_that_it_asks_for_in_the_forms_that_it_asks_for(seen: dict[str, Any]) -> None:
    assert seen["mixed"] == {"first": [[3], [5]], "double": [[6, 6], [10, 10]]}


def test_it_reads_errors(seen: dict[str, Any]) -> None:
    assert "there is no model 'nobody'" in seen["error"]
    assert "404" in seen["error"]
