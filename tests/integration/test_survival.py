"""What the others notice when a model crashes the server, and how the server ends."""

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.integration.faulty.sitecustomize import FATAL
from tests.integration.running import DIGITS, Octet, running, wait_for

REQUEST: dict[str, Any] = json.loads((DIGITS / "request.json").read_bytes())


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    """Serves the models `good` and `bad`; each crashes the server on the value FATAL."""
    home = tmp_path_factory.mktemp("octet") / "home"
    with running(home, PYTHONPATH=str(Path(__file__).parent / "faulty")) as service:
        for model in ("good", "bad"):
            build = service.ended(service.upload(model, calibration="max").json()["id"], 120)
            assert build["state"] == "succeeded", build["error"]
            wait_for(partial(service.serves, model), f"{model} to be served", 60, service)
        yield service


def fatal(octet: Octet, model: str) -> None:
    """Sends a request that takes the server with it."""
    (tensor,) = REQUEST["inputs"]
    request = {"inputs": [tensor | {"data": [FATAL] * math.prod(tensor["shape"])}]}
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{octet.client.base_url}/v2/models/{model}/infer", json=request, timeout=60)


def state(octet: Octet, model: str) -> dict[str, Any]:
    (version,) = octet.client.get(f"/v1/models/{model}").json()["versions"]
    found: dict[str, Any] = version
    return found


@pytest.mark.timeout(300)
def test_a_model_that_crashes_the_server_twice_is_quarantined_and_the_others_answer(octet: Octet) -> None:
    for crash in range(2):
        (server,) = octet.processes("service.server")
        fatal(octet, "bad")
        # Nobody who connects meanwhile is refused, and who asks for another model waits for its answer.
        answer = httpx.post(f"{octet.client.base_url}/v2/models/good/infer", json=REQUEST, timeout=60)
        assert answer.status_code == 200, answer.text
        assert octet.processes("service.server") != [server]
        assert "the server died of SIGSEGV; suspected: version 1 of bad" in octet.log
        if not crash:
            # Once is nobody's fault: the client's next try gets its answer.
            wait_for(lambda: octet.infer("bad").status_code == 200, "the suspect to be served", 60, octet)
    wait_for(octet.is_ready, "octet to be ready", 60, octet)
    refused = octet.infer("bad")
    assert refused.status_code == 503
    assert "version 1 of model 'bad' is quarantined: the server crashed 2 times" in refused.json()["error"]
    assert octet.client.get("/v2/models/bad/ready").status_code == 503
    assert state(octet, "bad")["state"] == "quarantined"
    series = 'octet_version_state{model="bad",state="quarantined",version="1"} 1.0'
    assert series in octet.client.get("/metrics").text
    # It stays so over restarts, until somebody says otherwise.
    assert octet.stop() == 0
    octet.start()
    assert octet.infer("bad").status_code == 503
    assert octet.infer("good").status_code == 200
    assert octet.client.post("/v2/repository/models/bad/load", timeout=60).status_code == 200
    assert octet.infer("bad").status_code == 200
    assert state(octet, "bad")["state"] == "ready"


@pytest.mark.timeout(120)
def test_a_server_killed_from_outside_is_nobodys_fault(octet: Octet) -> None:
    (server,) = octet.processes("service.server")
    os.kill(server, signal.SIGKILL)
    assert (
        httpx.post(f"{octet.client.base_url}/v2/models/good/infer", json=REQUEST, timeout=60).status_code
        == 200
    )
    assert state(octet, "good")["state"] == "ready"
    crashes = octet.home / "crashes.json"
    assert not crashes.exists() or not json.loads(crashes.read_text())


class Clients:
    """Send requests one after the other, each on a connection that it keeps, and note what became of them.

    One whose connection the server ends with its answer turns to another server.
    """

    def __init__(self, octet: Octet, *, count: int = 4) -> None:
        self.ends: Counter[str] = Counter()
        self._octet = octet
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx.Client(base_url=self._octet.client.base_url, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/v2/models/good/infer", json=REQUEST)
                except httpx.TransportError as error:
                    self.ends[type(error).__name__] += 1
                    return
                self.ends[str(answer.status_code)] += 1
                if answer.headers.get("connection") == "close":
                    return


@pytest.mark.timeout(120)
def test_a_version_is_promoted_and_rolled_back_under_load_without_a_failed_request(octet: Octet) -> None:
    build = octet.ended(octet.upload("good", calibration="mse", promote=False).json()["id"], 120)
    assert build["state"] == "succeeded", build["error"]
    wait_for(
        lambda: octet.client.get("/v2/models/good/versions/2/ready").status_code == 200,
        "version 2",
        60,
        octet,
    )
    answered: set[str] = set()
    with Clients(octet) as clients:
        for number in (2, 1) * 4:
            octet.client.put("/v1/models/good/default", json={"version": number}).raise_for_status()
            time.sleep(0.6)
            answered.add(octet.infer("good").json()["model_version"])
        octet.client.delete("/v1/models/good/versions/2").raise_for_status()
        time.sleep(0.6)
    assert answered == {"1", "2"}
    assert set(clients.ends) == {"200"}
    assert clients.ends["200"] > 100


@pytest.mark.timeout(120)
def test_a_signal_under_load_harms_no_request_and_ends_with_success(octet: Octet) -> None:
    with Clients(octet) as clients:
        time.sleep(0.5)
        started_s = time.monotonic()
        assert octet.stop() == 0
        assert time.monotonic() - started_s < 20
    octet.start()
    assert set(clients.ends) <= {"200", "503"}
    assert clients.ends["200"]


@pytest.mark.timeout(120)
def test_a_signal_during_a_build_ends_with_success_and_the_build_goes_on_later(octet: Octet) -> None:
    build_id = octet.upload("later", force=True).json()["id"]
    wait_for(lambda: bool(octet.build_children()), "a child to work", 30, octet)
    started_s = time.monotonic()
    assert octet.stop() == 0
    assert time.monotonic() - started_s < 10
    wait_for(lambda: not octet.processes(), "every process to end", 5, octet)
    octet.start()
    assert octet.ended(build_id, 120)["state"] == "succeeded"


@pytest.mark.timeout(120)
def test_a_second_signal_ends_it_at_once(octet: Octet) -> None:
    (server,) = octet.processes("service.server")
    # A server that hangs would keep the first signal waiting for all of the grace time.
    os.kill(server, signal.SIGSTOP)
    octet.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert octet.poll() is None
    octet.signal(signal.SIGTERM)
    assert octet.wait(5) == 0
    wait_for(lambda: not octet.processes(), "every process to end", 5, octet)
    octet.start()
