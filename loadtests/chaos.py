"""What two minutes of `kill -9` do to a fleet: `python -m loadtests.chaos`, about five minutes.

Two servers and two workers run on one PostgreSQL and one S3 server, all on this machine, under a steady load of
inference and uploads. Their processes are killed at random, with a seed, some together with their supervisors, which
are started again; then the database and the store are away for ten seconds each. At the end every upload that was
accepted must be exactly one version, whole and served; the table says what clients saw meanwhile.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.databases import postgresql
from tests.integration.chaos import (
    STEADY,
    Load,
    Tally,
    check_nothing_lost,
    database_away,
    kill_at_random,
    store_away,
)
from tests.integration.fleet import Fleet, fleet

AWAY_S = 10.0
UPLOAD_EVERY_S = 10.0
KILL_EVERY_S = 5.0


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills-s", type=float, default=120.0)
    asked = parser.parse_args()
    table = Table("", "seconds", "kills", "answers", "refused", "broken", "longest gap s", "uploads")
    with (
        tempfile.TemporaryDirectory(prefix="octet-chaos-") as folder,
        postgresql() as database,
        fleet(Path(folder), database) as made,
    ):
        begin(made)
        accepted: list[str] = []
        harms: dict[str, Callable[[], int]] = {
            "killed at random": lambda: kill_at_random(
                made, seed=asked.seed, for_s=asked.kills_s, every_s=KILL_EVERY_S
            ),
            "database away": lambda: away(made, database_away),
            "store away": lambda: away(made, store_away),
        }
        for name, harm in harms.items():
            with Load(made, seed=asked.seed, upload_every_s=UPLOAD_EVERY_S) as load:
                start_s = time.monotonic()
                kills = harm()
                end_s = time.monotonic()
            table.add_row(name, f"{end_s - start_s:.0f}", str(kills), *shown(load.tally, start_s, end_s))
            accepted += load.tally.accepted
            check_nothing_lost(made, load.tally.accepted, 300)
    Console().print(table)
    print(
        f"{len(accepted)} uploads were accepted, and each is one version, whole and served by every server."
    )


def begin(made: Fleet) -> None:
    """Two servers that serve the model which is asked for all along, and two workers."""
    for _ in range(2):
        made.add_server()
        made.add_worker()
    made.wait_until_ready()
    made.ended(made.servers[0].upload(STEADY).json()["id"])
    for server in made.servers:
        made.wait(lambda server=server: server.serves(STEADY), "the first version to be served", 60)


def away(made: Fleet, part: Callable[[Fleet], AbstractContextManager[None]]) -> int:
    """Has a part of the fleet away; kills nobody."""
    with part(made):
        time.sleep(AWAY_S)
    return 0


def shown(tally: Tally, start_s: float, end_s: float) -> list[str]:
    """The cells of a row."""
    gap_s = tally.longest_gap_s(start_s, end_s)
    return [
        str(tally.answers),
        str(len(tally.refused)),
        str(tally.broken),
        f"{gap_s:.2f}",
        str(len(tally.accepted)),
    ]


if __name__ == "__main__":
    main()
