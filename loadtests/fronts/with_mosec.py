"""mosec: a front end in Rust, batches that wait for a millisecond at most: `with_mosec PORT ROWS`.

A batch that is not full waits for the whole of its millisecond, engine idle or not. So what mosec does depends on
whether the clients happen to be as many as a batch has rows.
"""

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
    port, rows = sys.argv[1:]
    # mosec reads its port from the command line.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--log-level", "warning"]
    server = Server()
    server.append_worker(Tiny, max_batch_size=int(rows), max_wait_time=1)
    server.run()
