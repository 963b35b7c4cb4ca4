"""A service with three models of different kinds, as the benchmarks of a model's life need it."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson

from examples.demo import free_port
from examples.running import Running, service
from loadtests.paced_load import PacedLoad
from loadtests.serving import infer_request

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
SAMPLES = DIGITS / "samples.npz"
_ZOO = Path(__file__).parent / "models"
MODELS = {"digits": DIGITS / "digits.onnx", "depthwise": _ZOO / "depthwise.onnx", "vit": _ZOO / "vit.onnx"}
"""They all read images of digits."""
_BUILD_S = 300.0


@contextlib.contextmanager
def serving() -> Iterator[Running]:
    """A service of its own that serves the three models."""
    with (
        tempfile.TemporaryDirectory(prefix="octet-loadtest-") as folder,
        service(Path(folder), port=free_port()) as octet,
    ):
        with httpx.Client(base_url=octet.address, timeout=60.0) as client:
            for name, model in MODELS.items():
                build(client, name, model)
                wait_until_served(client, name)
        yield octet


def build(client: httpx.Client, name: str, model: Path, **options: object) -> int:
    """Builds a model with little effort; the number of its version."""
    answer = client.post(
        f"/v1/models/{name}/builds",
        params={"force": True},
        files=[
            ("model", (model.name, model.read_bytes())),
            ("samples", (SAMPLES.name, SAMPLES.read_bytes())),
            (
                "options",
                (None, orjson.dumps({"effort": "fast", "on_miss": "publish", **options}), "application/json"),
            ),
        ],
    ).raise_for_status()
    deadline = time.monotonic() + _BUILD_S
    while (state := client.get(f"/v1/builds/{answer.json()['id']}").json())["state"] != "succeeded":
        if state["state"] == "failed" or time.monotonic() > deadline:
            raise SystemExit(f"the build of {name} is {state['state']}: {state['error']}")
        time.sleep(0.1)
    return int(state["result"]["version"])


def wait_until_served(client: httpx.Client, model: str, version: int | None = None) -> None:
    """Waits until a model, or a version of it, answers."""
    path = f"/v2/models/{model}" if version is None else f"/v2/models/{model}/versions/{version}"
    deadline = time.monotonic() + _BUILD_S
    while client.get(f"{path}/ready").status_code != httpx.codes.OK:
        if time.monotonic() > deadline:
            raise SystemExit(f"{path} did not get ready in {_BUILD_S:g} s")
        time.sleep(0.02)


def load_on(octet: Running, *, every_s: float) -> PacedLoad:
    """Requests of one row to each of the models."""
    samples = dict(np.load(SAMPLES))
    return PacedLoad(
        host="127.0.0.1",
        port=int(octet.address.rsplit(":", 1)[1]),
        requests={model: infer_request(model, samples, [0]) for model in MODELS},
        every_s=every_s,
    )
