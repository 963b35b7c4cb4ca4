"""Keys on a real `octet serve`: made, limited and revoked while it runs, and it alone decides who gets in."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.databases import PostgreSQL
from tests.integration.fleet import fleet
from tests.integration.running import DIGITS, ROOT, Octet, running, wait_for
from tests.integration.test_readme import COMMANDS, PRINTED_ADDRESS, WITH_A_KEY

NOTICED_S = 2.0
"""Within this a server goes by what was done to a key."""


def keys(octet: Octet, *arguments: str) -> str:
    """What `octet keys` prints, with the environment of a running octet."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "keys", *arguments],
        cwd=ROOT,
        env={**os.environ, **octet.environment, "OCTET_HOME": str(octet.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sent(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def id_of(key: str) -> str:
    return key.split("_")[1]


def status(octet: Octet, path: str, key: str | None = None) -> int:
    return octet.client.get(path, headers={} if key is None else sent(key)).status_code


def seconds_until(octet: Octet, path: str, key: str, wanted: int) -> float:
    started_s = time.monotonic()
    wait_for(lambda: status(octet, path, key) == wanted, f"{wanted} at {path}", 10.0, octet)
    return time.monotonic() - started_s


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    """One that serves digits and asks for keys."""
    with running(tmp_path_factory.mktemp("access") / "home") as octet:
        build = octet.upload().json()["id"]
        assert octet.ended(build)["state"] == "succeeded"
        wait_for(lambda: octet.serves("digits"), "digits to be served", 30.0, octet)
        assert status(octet, "/v1/models") == 200
        keys(octet, "create", "--name", "admin", "--scope", "admin")
        wait_for(lambda: status(octet, "/v1/models") == 401, "keys to be asked for", NOTICED_S, octet)
        yield octet


def test_a_key_of_the_readme_opens_what_it_says(octet: Octet) -> None:
    key = keys(octet, "create", "--name", "ci", "--scope", "infer", "--scope", "build")
    seconds_until(octet, "/v1/models", key, 200)
    command = COMMANDS[WITH_A_KEY].replace(PRINTED_ADDRESS, f"http://127.0.0.1:{octet.port}")
    answers = []
    for sends in (key, f"{key[:-1]}x", ""):
        done = subprocess.run(
            f"{command} -w ' %{{http_code}}'",
            shell=True,
            env={**os.environ, "KEY": sends},
            capture_output=True,
            check=True,
        )
        answers.append(done.stdout.decode().rpartition(" ")[2])
    assert answers == ["200", "401", "401"]
    request = (DIGITS / "request.json").read_bytes()
    infer = "/v2/models/digits/infer"
    assert octet.client.post(infer, content=request, headers=sent(key)).status_code == 200
    refused = octet.client.put("/v1/models/digits/default", json={"version": 1}, headers=sent(key))
    assert (refused.status_code, refused.json()["code"]) == (403, "access.scope")
    keys(octet, "revoke", id_of(key))
    assert seconds_until(octet, "/v1/models", key, 401) < NOTICED_S
    assert octet.client.post(infer, content=request, headers=sent(key)).status_code == 401


def test_nvidias_client_sends_keys_as_headers(octet: Octet) -> None:
    key = keys(octet, "create", "--name", "triton", "--scope", "infer")
    seconds_until(octet, "/v2", key, 200)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{octet.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        meta = client.get_model_metadata("digits", headers=sent(key))["inputs"][0]
        shape = [1, *meta["shape"][1:]]
        rows = tritonclient.http.InferInput(meta["name"], shape, meta["datatype"])
        rows.set_data_from_numpy(np.zeros(shape, np.float32))
        answer: Any = client.infer("digits", [rows], headers=sent(key))
        assert answer.get_response()["model_name"] == "digits"
        with pytest.raises(InferenceServerException, match="needs an API key and none came"):
            client.infer("digits", [rows])


def test_quotas_are_kept_and_changed_while_it_runs(octet: Octet) -> None:
    key = keys(octet, "create", "--name", "slow", "--scope", "infer", "--requests-per-second", "0.01")
    seconds_until(octet, "/v2", key, 429)
    refused = octet.client.get("/v2", headers=sent(key))
    assert int(refused.headers["retry-after"]) > 10
    keys(octet, "limit", id_of(key), "--requests-per-second", "0")
    assert seconds_until(octet, "/v2", key, 200) < NOTICED_S


def test_the_trail_is_in_the_log_and_keys_are_not(octet: Octet) -> None:
    key = keys(octet, "create", "--name", "short-lived", "--scope", "build")
    seconds_until(octet, "/v1/models", key, 200)
    build = octet.client.delete("/v1/builds/nobody", headers={**sent(key), "X-Request-ID": "the-trail"})
    assert build.status_code == 404
    lines = [line for line in octet.log.splitlines() if '"octet.audit"' in line]
    [told] = [line for line in lines if "the-trail" in line]
    for word in ("build.cancel", "request.not_found", id_of(key), "short-lived", "127.0.0.1"):
        assert word in told
    assert any('"key.create"' in line and id_of(key) in line for line in lines)
    assert key.rpartition("_")[2] not in octet.log


def test_keys_outlive_a_restart_and_a_crash_of_the_server_opens_nothing(octet: Octet) -> None:
    key = keys(octet, "create", "--name", "lasting", "--scope", "infer")
    seconds_until(octet, "/v2", key, 200)
    assert octet.stop() == 0
    octet.start()
    assert status(octet, "/v2", key) == 200
    assert status(octet, "/v2") == 401
    [server] = octet.processes("service.server")
    os.kill(server, 9)
    seen = set[int]()

    def is_back() -> bool:
        try:
            seen.add(status(octet, "/v1/models"))
        except httpx.TransportError:
            return False
        return octet.processes("service.server") != [server] and octet.is_ready()

    wait_for(is_back, "the server to be back", 30.0, octet)
    assert seen == {401}


def test_a_wide_bind_starts_with_a_key_or_not_at_all(tmp_path: Path) -> None:
    wide = {"OCTET_HOST": "0.0.0.0", "OCTET_WORKER": "0"}
    octet = Octet(tmp_path / "home", environment=wide)
    octet.client.close()
    octet.spawn()
    assert octet.wait(30.0) == 1
    assert "there are no keys" in octet.log
    assert "the server cannot start as it was told to; its message above says why" in octet.log
    key = keys(octet, "create", "--name", "first", "--scope", "admin")
    with running(tmp_path / "home", **wide) as octet:
        assert (status(octet, "/v1/models"), status(octet, "/v1/models", key)) == (401, 200)


@pytest.mark.parametrize("told", [{"OCTET_ADMIN_KEY": "a" * 40}, {"OCTET_NO_AUTH": "1"}])
def test_a_wide_bind_starts_when_it_is_told_how(tmp_path: Path, told: dict[str, str]) -> None:
    with running(tmp_path / "home", OCTET_HOST="0.0.0.0", OCTET_WORKER="0", **told) as octet:
        assert status(octet, "/v1/models") == (401 if "OCTET_ADMIN_KEY" in told else 200)
        assert status(octet, "/v1/models", "a" * 40) == 200


@pytest.mark.timeout(300)
def test_a_fleet_goes_by_what_is_done_to_a_key_within_two_seconds(
    tmp_path: Path, postgresql_server: PostgreSQL
) -> None:
    with fleet(tmp_path, postgresql_server, OCTET_ADMIN_KEY="b" * 40) as octets:
        first, second = octets.add_server(), octets.add_server()
        octets.wait_until_ready()
        assert [status(server, "/v1/models") for server in octets.servers] == [401, 401]
        key = keys(first, "create", "--name", "fleet", "--scope", "build")
        for server in octets.servers:
            assert seconds_until(server, "/v1/models", key, 200) < NOTICED_S
        keys(second, "revoke", id_of(key))
        started_s = time.monotonic()
        for server in octets.servers:
            seconds_until(server, "/v1/models", key, 401)
        assert time.monotonic() - started_s < NOTICED_S
        last = keys(first, "create", "--name", "lasting", "--scope", "build")
        for server in octets.servers:
            seconds_until(server, "/v1/models", last, 200)
        postgresql_server.stop()
        try:
            time.sleep(2.0)
            for server in octets.servers:
                # Who has a key gets in, and learns that the database is away; nobody else does.
                assert (status(server, "/v1/models", last), status(server, "/v1/models", key)) == (503, 401)
                assert status(server, "/v1/models") == 401
        finally:
            postgresql_server.start()
