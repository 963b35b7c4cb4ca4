"""mosec: a front end in Rust, batches of at most 32 rows that wait for a millisecond at most."""

import sys
from typing import Any

import numpy as np
from mosec import Server, Worker

from loadtests.fronts.model import FEATURES, scores


class Tiny(Worker):
    """Takes and gives JSON, as mosec's workers do unless told else."""

    def forward(self, data: list[Any]) -> list[Any]:
        """One batch of decoded requests."""
        rows = np.array([request["inputs"][0]["data"] for request in data], np.float32)
        return [{"scores": row} for row in scores(rows.reshape(-1, FEATURES)).tolist()]


if __name__ == "__main__":
    # mosec reads its port from the command line.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", sys.argv[1], "--log-level", "warning"]
    server = Server()
    server.append_worker(Tiny, max_batch_size=32, max_wait_time=1)
    server.run()
