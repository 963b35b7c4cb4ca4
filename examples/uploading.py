"""What a client of octet does: upload a model and follow its build until it is served."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson

POLL_S = 0.1
BUILD_TIMEOUT_S = 300.0


class UploadError(Exception):
    """octet refused something, or took too long; the message says why."""


def build(
    client: httpx.Client,
    name: str,
    model: Path,
    samples: Path,
    options: dict[str, Any],
    *,
    told: Callable[[str, float], None],
) -> None:
    """Uploads `model` as `name` and waits until it is served; `told` takes the phase and the share that is done.

    Raises:
        UploadError: the build failed, or the model is not served in time.
    """
    with model.open("rb") as onnx, samples.open("rb") as rows:
        answer = client.post(
            f"/v1/models/{name}/builds",
            files=[
                ("model", (model.name, onnx)),
                ("samples", (samples.name, rows)),
                ("options", (None, orjson.dumps(options), "application/json")),
            ],
        )
    state = checked(answer)
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    while state["state"] in ("queued", "running"):
        if time.monotonic() > deadline:
            raise UploadError(f"the build of {name} is still {state['phase']} after {BUILD_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
        state = checked(client.get(f"/v1/builds/{state['id']}"))
        told(state["phase"] or state["state"], state["progress"])
    if state["state"] != "succeeded":
        raise UploadError(f"the build of {name} {state['state']}: {state['error']['error']}")
    while client.get(f"/v2/models/{name}/ready").status_code != httpx.codes.OK:
        if time.monotonic() > deadline:
            raise UploadError(f"{name} was built but is not served after {BUILD_TIMEOUT_S:.0f} s")
        told("load", 1.0)
        time.sleep(POLL_S)
    told("ready", 1.0)


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer that is no error.

    Raises:
        UploadError: it is one.
    """
    state: dict[str, Any] = answer.json()
    if answer.is_error:
        raise UploadError(f"{answer.request.method} {answer.request.url.path}: {state['error']}")
    return state
