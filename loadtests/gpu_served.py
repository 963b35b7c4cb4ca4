"""Builds a network in 8 bits in a running octet, and says what came of it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from engines.model.tensors import Array
from engines.options import Precision
from examples.running import Running

_BUILD_TIMEOUT_S = 1800.0
_NO_FP8 = "FP8 begins with"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True, kw_only=True)
class ServedEngine:
    """A model that octet serves in 8 bits, or why it does not."""

    model: str
    # The Q/DQ file that was downloaded; None where 8 bits do not serve.
    artifact: Path | None = None
    problem: str = ""
    # Why the GPU cannot have it; no problem.
    left_out: str = ""

    def request(self, samples: Mapping[str, Array], row: int) -> bytes:
        """A whole HTTP request with one row as binary tensors."""
        arrays = {name: np.ascontiguousarray(values[row : row + 1]) for name, values in samples.items()}
        tensors = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _DATATYPES[array.dtype.name],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in arrays.items()
        ]
        text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        body = text + b"".join(array.tobytes() for array in arrays.values())
        head = (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def served(octet: Running, name: str, precision: Precision, model: Path, folder: Path) -> ServedEngine:
    """Uploads `model` with `folder`/samples.npz and waits until it is served."""
    known = f"{name}-{precision}"
    # Random weights promise nothing: the self-test has a bar of its own.
    options = {
        "precision": precision,
        "runtime": "tensorrt",
        "effort": "fast",
        "on_miss": "publish",
        "contract": {"metric": "sqnr_db", "min": 1},
    }
    with httpx.Client(base_url=octet.address, timeout=120.0) as client:
        with model.open("rb") as file, (folder / "samples.npz").open("rb") as samples:
            answer = client.post(
                f"/v1/models/{known}/builds",
                files=[
                    ("model", (model.name, file)),
                    ("samples", ("samples.npz", samples)),
                    ("options", (None, json.dumps(options).encode(), "application/json")),
                ],
            )
        answer.raise_for_status()
        build = _ended(client, answer.json()["id"])
        if build["state"] != "succeeded":
            return ServedEngine(model=known, problem=f"the build is {build['state']}: {build['error']}")
        report = client.get(f"/v1/models/{known}/versions/1/report").json()
        if report["serving"] != precision:
            reasons = json.dumps(report)
            if _NO_FP8 in reasons:
                return ServedEngine(model=known, left_out="the GPU is older than FP8")
            return ServedEngine(model=known, problem=f"{report['serving']} serves: {report['verdict']}")
        while client.get(f"/v2/models/{known}/ready").status_code != httpx.codes.OK:
            time.sleep(0.1)
        artifact = folder / f"{known}.onnx"
        artifact.write_bytes(client.get(f"/v1/models/{known}/versions/1/artifact").content)
    return ServedEngine(model=known, artifact=artifact)


def _ended(client: httpx.Client, build: str) -> dict[str, str]:
    deadline = time.monotonic() + _BUILD_TIMEOUT_S
    while True:
        found: dict[str, str] = client.get(f"/v1/builds/{build}").json()
        if found["state"] in ("succeeded", "failed", "cancelled"):
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"FAIL  the build {build} has taken more than {_BUILD_TIMEOUT_S:.0f} s")
        time.sleep(0.2)
