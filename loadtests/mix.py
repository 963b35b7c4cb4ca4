"""Whether anybody is harmed while models come and go: `python -m loadtests.mix`, about two minutes.

Three models answer requests at a steady pace, first with nothing else going on and then while a fourth is built,
loaded, built anew, promoted, rolled back, unloaded, loaded again and deleted. A request that fails in either time
is counted, and the exit status is 1 if there is one.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from examples.running import Running
from loadtests import three_models
from loadtests.paced_load import PacedLoad, Reply, percentile_ms
from loadtests.three_models import MODELS

FOURTH = "fourth"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.mix", description=__doc__)
    parser.add_argument("--quiet-s", type=float, default=20.0, help="seconds with nothing else going on")
    parser.add_argument("--every-ms", type=float, default=40.0, help="pace of each of two senders per model")
    parser.add_argument("--swaps", type=int, default=5, help="how often to promote and roll back")
    options = parser.parse_args()
    with three_models.serving() as octet:
        load = three_models.load_on(octet, every_s=options.every_ms / 1e3)
        turned_s, steps = asyncio.run(run(octet, load, options))
    Console(width=110).print(
        table(load, turned_s), *(f"{what}: {took_s:.1f} s" for what, took_s in steps), sep="\n"
    )
    return int(any(reply.status != httpx.codes.OK for replies in load.replies.values() for reply in replies))


async def run(
    octet: Running, load: PacedLoad, options: argparse.Namespace
) -> tuple[float, list[tuple[str, float]]]:
    """Runs both times; when the second began, and what its steps took."""
    async with load.running():
        await asyncio.sleep(options.quiet_s)
        turned_s = time.perf_counter()
        steps = await asyncio.to_thread(life_of_a_fourth, octet, options.swaps)
    return turned_s, steps


def life_of_a_fourth(octet: Running, swaps: int) -> list[tuple[str, float]]:
    """Everything that a model goes through, while others answer."""
    steps = []
    model = MODELS["digits"]
    with httpx.Client(base_url=octet.address, timeout=120.0) as client:

        def promote() -> None:
            for number in (2, 1) * swaps:
                client.put(f"/v1/models/{FOURTH}/default", json={"version": number}).raise_for_status()
                time.sleep(0.6)

        stages: list[tuple[str, Callable[[], object]]] = [
            ("built", lambda: three_models.build(client, FOURTH, model)),
            ("loaded", lambda: three_models.wait_until_served(client, FOURTH)),
            ("built anew, not promoted", lambda: three_models.build(client, FOURTH, model, promote=False)),
            ("loaded beside the first", lambda: three_models.wait_until_served(client, FOURTH, 2)),
            (f"promoted and rolled back, {swaps} times", promote),
            ("unloaded", lambda: client.post(f"/v2/repository/models/{FOURTH}/unload").raise_for_status()),
            ("loaded again", lambda: client.post(f"/v2/repository/models/{FOURTH}/load").raise_for_status()),
            ("deleted", lambda: client.delete(f"/v1/models/{FOURTH}").raise_for_status()),
        ]
        for what, stage in stages:
            started_s = time.perf_counter()
            stage()
            steps.append((what, time.perf_counter() - started_s))
        time.sleep(1.0)
    return steps


def table(load: PacedLoad, turned_s: float) -> Table:
    """Each model in the quiet time and in the busy one."""
    shown = Table(
        title="three models, while nothing happens and while a fourth comes and goes", box=box.SIMPLE
    )
    columns = (
        "", "requests", "failed", "p50 ms\nquiet", "p50 ms\nbusy", "p99 ms\nquiet", "p99 ms\nbusy", "p99\nbusy/quiet",
    )  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="right")
    for model in MODELS:
        replies = load.replies[model]
        quiet: list[Reply] = [reply for reply in replies if reply.due_s < turned_s]
        busy = [reply for reply in replies if reply.due_s >= turned_s]
        p99_ms = percentile_ms(quiet, 99), percentile_ms(busy, 99)
        shown.add_row(
            model,
            f"{len(replies):,}",
            str(sum(reply.status != httpx.codes.OK for reply in replies)),
            *(f"{percentile_ms(part, 50):.1f}" for part in (quiet, busy)),
            *(f"{value:.1f}" for value in p99_ms),
            f"{p99_ms[1] / p99_ms[0]:.1f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
