"""How long models are away when the server dies: `python -m loadtests.survival`, about a minute.

Three models answer requests at a steady pace while the server is killed several times, as by `kill -9`. What is
counted: requests that got no answer, and the time from the kill to the answer of the first request that each model
got afterwards. Which model a crash is blamed on is a matter of tests.
"""

import argparse
import asyncio
import os
import signal
import sys
import time

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples.running import Running
from loadtests import three_models
from loadtests.paced_load import PacedLoad
from loadtests.serving import server_of
from loadtests.three_models import MODELS


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.survival", description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="how often the server dies")
    parser.add_argument("--every-s", type=float, default=12.0, help="between two deaths")
    options = parser.parse_args()
    with three_models.serving() as octet:
        load = three_models.load_on(octet, every_s=0.02)
        kills_s = asyncio.run(run(octet, load, options))
    Console(width=100).print(table(load, kills_s))
    return 0


async def run(octet: Running, load: PacedLoad, options: argparse.Namespace) -> list[float]:
    """Kills the server again and again; when, on time.perf_counter."""
    kills_s = []
    async with load.running():
        for _ in range(options.kills):
            await asyncio.sleep(options.every_s)
            os.kill(server_of(octet.process.pid), signal.SIGKILL)
            kills_s.append(time.perf_counter())
        await asyncio.sleep(options.every_s)
    return kills_s


def table(load: PacedLoad, kills_s: list[float]) -> Table:
    """Each model's time without answers."""
    shown = Table(title=f"{len(kills_s)} deaths of the server", box=box.SIMPLE)
    for column in ("", "requests", "lost", "away: median s", "longest s"):
        shown.add_column(column, justify="right")
    for model in MODELS:
        replies = load.replies[model]
        answered = [reply for reply in replies if reply.status == httpx.codes.OK]
        away_s = [
            min(
                (reply.due_s + reply.latency_s for reply in answered if reply.sent_s > kill_s), default=np.inf
            )
            - kill_s
            for kill_s in kills_s
        ]
        lost = sum(reply.status != httpx.codes.OK for reply in replies)
        shown.add_row(model, f"{len(replies):,}", str(lost), f"{np.median(away_s):.2f}", f"{max(away_s):.2f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
