"""How tests call NVIDIA's client."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http

from engines.model.tensors import Array
from tests.unit.service.live_server import LiveServer

ROWS = np.array([[3, 3], [5, 5]], np.float32)


async def in_thread(server: LiveServer, work: Callable[[Any], Any]) -> Any:
    """The result of `work` with a synchronous client, beside the server's own event loop."""

    def run() -> Any:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            return work(client)

    return await asyncio.to_thread(run)


def tensor(values: Array, *, binary: bool = True, datatype: str = "FP32") -> Any:
    entry = tritonclient.http.InferInput("x", list(values.shape), datatype)
    return entry.set_data_from_numpy(values, binary_data=binary)


def wanted(name: str, *, binary: bool) -> Any:
    return tritonclient.http.InferRequestedOutput(name, binary_data=binary)
