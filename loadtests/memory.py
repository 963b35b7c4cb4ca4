"""Whether an unloaded model gives its memory back: `python -m loadtests.memory`, about two minutes.

Loads, uses and unloads a model again and again in a running service and reads the resident memory of the server
after each round. The exit status is 1 where it grows by 5% or more from the first rounds to the last.
"""

import argparse
import sys
import time

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests import three_models
from loadtests.serving import infer_request, server_of
from service.processes.memory import resident_bytes

MOST_GROWTH = 0.05
# What is set up at the first use belongs to no model.
_FIRST_ROUNDS = 3
_REQUESTS = 20
# Memory that is the same so often, so far apart, has settled.
_LOOK_S = 0.1
_EQUAL_LOOKS = 6
_MOST_LOOKS = 100
_MIB = 1 << 20


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="loads and unloads")
    options = parser.parse_args()
    with three_models.serving() as octet:
        loaded, unloaded = rounds(octet.address, server_of(octet.process.pid), options.rounds)
    first, last = (float(np.median(part)) for part in (unloaded[:_FIRST_ROUNDS], unloaded[-_FIRST_ROUNDS:]))
    growth = last / first - 1
    Console(width=100).print(table(loaded, unloaded))
    print(
        f"after unloading: {first / _MIB:.1f} MiB in the first rounds, {last / _MIB:.1f} in the last: {growth:+.1%}"
    )
    return int(growth >= MOST_GROWTH)


def rounds(address: str, server: int, count: int) -> tuple[list[int], list[int]]:
    """Resident bytes of the server with the three models in memory and without, after each round."""
    loaded, unloaded = [], []
    samples = dict(np.load(three_models.SAMPLES))
    with httpx.Client(base_url=address, timeout=120.0) as client:
        for _ in range(count):
            for model in three_models.MODELS:
                client.post(f"/v2/repository/models/{model}/load").raise_for_status()
                for index in range(_REQUESTS):
                    body = infer_request(model, samples, [index]).partition(b"\r\n\r\n")[2]
                    client.post(f"/v2/models/{model}/infer", content=body).raise_for_status()
            loaded.append(resident_bytes(server))
            for model in three_models.MODELS:
                client.post(f"/v2/repository/models/{model}/unload").raise_for_status()
            unloaded.append(settled_bytes(server))
    return loaded, unloaded


def settled_bytes(pid: int) -> int:
    """Resident memory once it changes no more: engines close after the request to unload them was answered."""
    seen = [resident_bytes(pid)]
    while len(seen) < _MOST_LOOKS and (len(seen) < _EQUAL_LOOKS or np.ptp(seen[-_EQUAL_LOOKS:]) > _MIB):
        time.sleep(_LOOK_S)
        seen.append(resident_bytes(pid))
    return seen[-1]


def table(loaded: list[int], unloaded: list[int]) -> Table:
    """Some of the rounds."""
    shown = Table(title="resident memory of the server, MiB", box=box.SIMPLE)
    for column in ("round", "three models loaded", "none loaded"):
        shown.add_column(column, justify="right")
    count = len(loaded)
    for number in sorted({0, 1, 2, *range(4, count, 5), count - 1} & set(range(count))):
        shown.add_row(str(number + 1), f"{loaded[number] / _MIB:.1f}", f"{unloaded[number] / _MIB:.1f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
