"""What KServe's client sees of a server, as JSON: run in an environment of its own, with the server's address.

Nothing of octet is imported: the package has dozens of dependencies of its own.
"""

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ROWS = np.array([[3, 3], [5, 5]], np.float32)


def asked(*, binary: bool, **changes: Any) -> InferRequest:
    """A request with `ROWS`, both ways in one form."""
    tensor = InferInput("x", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    parameters = {"binary_data_output": True} if binary else None
    return InferRequest("echo", [tensor], parameters=parameters, **changes)


async def seen(url: str) -> dict[str, Any]:
    """Everything that the client can be made to say."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "echo"),
            "nobody_ready": await client.is_model_ready(url, "nobody"),
        }
        for form in ("json", "binary"):
            response = await client.infer(
                url, asked(binary=form == "binary", request_id="me"), model_name="echo"
            )
            found[form] = {
                "model": [response.model_name, response.id],
                "outputs": {output.name: output.as_numpy().tolist() for output in response.outputs},
            }
        outputs = [
            RequestedOutput("first", {"binary_data": True}),
            RequestedOutput("double", {"binary_data": False}),
        ]
        response = await client.infer(url, asked(binary=True, request_outputs=outputs), model_name="echo")
        found["mixed"] = {output.name: output.as_numpy().tolist() for output in response.outputs}
        try:
            await client.infer(url, asked(binary=False), model_name="nobody")
        except httpx.HTTPStatusError as error:
            found["error"] = str(error)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(seen(sys.argv[1]))))
