"""LitServe: FastAPI in front of a worker process, batches of at most 32 rows that wait for a millisecond at most."""

import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from loadtests.fronts.model import scores


class Tiny(litserve.LitAPI):
    """One method a step, as LitServe calls them."""

    def setup(self, device: str) -> None:
        """Has nothing to load."""

    def decode_request(self, request: Request) -> Any:
        """The row of a request. LitServe reads the annotation, and hands over the decoded JSON."""
        body: Any = request
        return np.array(body["inputs"][0]["data"], np.float32)

    def predict(self, rows: Any) -> Any:
        """The scores of a batch."""
        return scores(np.stack(rows))

    def encode_response(self, output: Any) -> Any:
        """The answer to one request."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Tiny(max_batch_size=32, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
