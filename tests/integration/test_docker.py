"""The image for processors, built and run as its Dockerfile says, where a Docker engine answers and has a base.

The base is `octet-base:bookworm`, which docker/make_base.sh makes where no registry is reached, or OCTET_TEST_BASE.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.running import DIGITS, ROOT, free_port

BASE = os.environ.get("OCTET_TEST_BASE", "octet-base:bookworm")
IMAGE = "octet-tests"
# Building downloads the dependencies the first time.
pytestmark = pytest.mark.timeout(900)


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.fixture(scope="module")
def image() -> str:
    """The image, built anew."""
    if shutil.which("docker") is None or docker("version", check=False).returncode != 0:
        pytest.skip("no Docker engine answers on this machine")
    if docker("image", "inspect", BASE, check=False).returncode != 0:
        pytest.skip(f"this engine has no image {BASE}; docker/make_base.sh makes one")
    authorities = os.environ.get("SSL_CERT_FILE", "")
    secret = ["--secret", f"id=ca,src={authorities}"] if Path(authorities).is_file() else []
    built = docker(
        "build",
        "--network=host",
        *secret,
        f"--build-arg=BASE={BASE}",
        "--file=docker/Dockerfile",
        f"--tag={IMAGE}",
        ".",
        check=False,
    )
    if "buildx component is missing" in built.stderr:
        pytest.skip("this Docker client has no BuildKit; install its buildx component")
    assert built.returncode == 0, built.stderr[-3000:]
    return IMAGE


@pytest.fixture
def container(image: str) -> Iterator[tuple[str, str]]:
    """Name and address of a server in a container that may write to nothing but its data and /tmp."""
    name, port = f"octet-tests-{uuid.uuid4().hex}", free_port()
    docker(
        "run",
        "--detach",
        f"--name={name}",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--network=host",
        "--env=OCTET_HOST=127.0.0.1",
        f"--env=OCTET_PORT={port}",
        image,
    )
    try:
        yield name, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", "--volumes", name)


def until(seen: Callable[[], bool], what: str, name: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if seen():
                return
        time.sleep(0.2)
    logs = docker("logs", name, check=False)
    raise TimeoutError(
        f"waited {timeout_s:g} s for {what}; the container says\n{(logs.stdout + logs.stderr)[-3000:]}"
    )


def state(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", "--format={{json .State}}", name).stdout)
    return found


def test_a_read_only_container_builds_serves_and_ends_in_order(container: tuple[str, str]) -> None:
    name, address = container
    with httpx.Client(base_url=address, timeout=30.0) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200, "octet to be ready", name)
        uploaded = client.post(
            "/v1/models/digits/builds",
            files=[
                ("model", ("model.onnx", (DIGITS / "digits.onnx").read_bytes())),
                ("samples", ("samples.npz", (DIGITS / "samples.npz").read_bytes())),
                ("options", (None, b'{"effort": "fast"}', "application/json")),
            ],
        )
        assert uploaded.status_code == 202, uploaded.text
        until(lambda: client.get("/v2/models/digits/ready").status_code == 200, "digits to be served", name)
        answer = client.post("/v2/models/digits/infer", content=(DIGITS / "request.json").read_bytes())
        assert answer.json()["outputs"][0]["shape"] == [1, 10]
        [build] = client.get("/v1/builds").json()["builds"]
        assert build["result"]["version"] == 1
    until(lambda: state(name)["Health"]["Status"] == "healthy", "the health check to see it", name)
    docker("stop", "--time=40", name)
    assert state(name)["ExitCode"] == 0


def test_nobody_is_root_and_nothing_to_compile_or_install_with_is_left(image: str) -> None:
    tools = "id --user; command -v gcc cc g++ make pip pip3 ld; python -c 'import pip' 2>&1 | tail --lines=1"
    found = docker("run", "--rm", "--entrypoint=sh", image, "-c", tools).stdout
    assert found == "10001\nModuleNotFoundError: No module named 'pip'\n"


def test_a_container_that_everybody_could_reach_does_not_start_by_itself(image: str) -> None:
    refused = docker("run", "--rm", image, check=False)
    assert refused.returncode == 1
    assert "OCTET_NO_AUTH=1" in refused.stderr
