"""What a server, a worker, a model and a build cost, and what the database sees of them: `python -m loadtests.costs`.

One server, then a worker beside it, on a real PostgreSQL and an S3 server, all on this machine. Idle costs are taken
over a while in which nothing happens; those of a build and the load that follows are what was counted beyond them.
Then the query by which servers follow the catalog is put to the database as fast as it answers. About three minutes.
docs/scaling.md draws its figures for large fleets from this.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.serving import processes
from service.catalog.catalog import Catalog
from service.catalog.schema import create_engine
from service.processes.memory import resident_bytes
from tests.databases import postgresql
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet

VIT = Path(__file__).parent / "models" / "vit.onnx"
POLLERS = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What went by between two readings, or in one second of idleness."""

    wall_s: float
    # Of the members' processes and of those of theirs that have ended.
    cpu_s: float
    transactions: float
    rows_read: float

    def beyond(self, idle: "Spent") -> "Spent":
        """This without what would have been spent in idleness."""
        return Spent(
            wall_s=self.wall_s,
            cpu_s=self.cpu_s - idle.cpu_s * self.wall_s,
            transactions=self.transactions - idle.transactions * self.wall_s,
            rows_read=self.rows_read - idle.rows_read * self.wall_s,
        )

    def a_second(self) -> "Spent":
        return Spent(
            wall_s=1.0,
            cpu_s=self.cpu_s / self.wall_s,
            transactions=self.transactions / self.wall_s,
            rows_read=self.rows_read / self.wall_s,
        )


class Meter:
    """Reads what the members of a fleet use and what their database counts."""

    def __init__(self, made: Fleet) -> None:
        self._made = made
        url = sa.make_url(made.environment["OCTET_DATABASE_URL"])
        self._name = url.database
        self._engine = create_engine(str(url)).execution_options(isolation_level="AUTOCOMMIT")

    def spent(self, work: Callable[[], object]) -> Spent:
        """What `work` takes. Sessions of the database report a second late."""
        time.sleep(1.5)
        before, start_s = self._reading(), time.monotonic()
        work()
        time.sleep(1.5)
        wall_s = time.monotonic() - start_s
        after = self._reading()
        cpu_s, transactions, rows = (b - a for a, b in zip(before, after, strict=True))
        return Spent(wall_s=wall_s, cpu_s=cpu_s, transactions=transactions, rows_read=rows)

    def connections(self) -> int:
        """Open connections to the fleet's database but this one."""
        return int(self._scalar("SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = :name"))

    def _reading(self) -> tuple[float, float, float]:
        counted = "FROM pg_stat_database WHERE datname = :name"
        return (
            sum(cpu_s(pid) for member in self._made.members for pid in member.processes()),
            self._scalar(f"SELECT xact_commit + xact_rollback {counted}"),
            self._scalar(f"SELECT tup_returned {counted}"),
        )

    def _scalar(self, query: str) -> float:
        with self._engine.connect() as connection:
            return float(connection.execute(sa.text(query), {"name": self._name}).scalar_one())

    def close(self) -> None:
        self._engine.dispose()


def cpu_s(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def memory_mb(member: Octet, module: str = "") -> float:
    """Resident memory of a member's processes, or of those that run `module`."""
    return sum(resident_bytes(pid) for pid in member.processes(module)) / 1e6


class Peak:
    """The most memory that a member had, looked at twenty times a second."""

    def __init__(self, member: Octet) -> None:
        self.mb = 0.0
        self._member = member
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.mb = max(self.mb, memory_mb(self._member))


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.costs", description=__doc__)
    parser.add_argument("--idle-s", type=float, default=30.0)
    idle_s: float = parser.parse_args().idle_s
    shown = Table("", "", box=box.SIMPLE, show_header=False)
    with (
        tempfile.TemporaryDirectory(prefix="octet-costs-") as folder,
        postgresql() as database,
        fleet(Path(folder), database, OCTET_THREADS="2") as made,
    ):
        meter = Meter(made)
        idle = members(made, meter, idle_s, shown)
        for name, onnx in (("digits", None), ("vit", VIT.read_bytes())):
            build(made, meter, idle, name, onnx, shown)
        polls(made, shown)
        meter.close()
    Console(width=110).print(shown)
    return 0


def members(made: Fleet, meter: Meter, idle_s: float, shown: Table) -> Spent:
    """A server by itself, then a worker beside it; both together in idleness, a second."""
    server = made.add_server()
    made.wait_until_ready()
    alone = meter.spent(lambda: time.sleep(idle_s)).a_second()
    shown.add_row("a server: memory of its processes, MB", f"{memory_mb(server):.0f}")
    shown.add_row("  of which the one that answers", f"{memory_mb(server, 'service.server'):.0f}")
    shown.add_row("  connections", str(meter.connections()))
    add_idle(shown, alone)
    connections = meter.connections()
    worker = made.add_worker()
    made.wait_until_ready()
    both = meter.spent(lambda: time.sleep(idle_s)).a_second()
    shown.add_row("a worker: memory of its processes, MB", f"{memory_mb(worker):.0f}")
    shown.add_row("  connections", str(meter.connections() - connections))
    add_idle(shown, both.beyond(alone))
    return both


def add_idle(shown: Table, idle: Spent) -> None:
    shown.add_row("  idle: processor ms/s", f"{idle.cpu_s * 1e3:.1f}")
    shown.add_row("  idle: transactions/s, rows read/s", f"{idle.transactions:.1f}, {idle.rows_read:.0f}")


def build(made: Fleet, meter: Meter, idle: Spent, name: str, onnx: bytes | None, shown: Table) -> None:
    """One build and the load that follows."""
    (server,), (worker,) = made.servers, made.workers
    before_mb, before = memory_mb(server, "service.server"), series(server)

    def run() -> None:
        posted = server.upload(name) if onnx is None else server.post(name, onnx)
        built = made.ended(posted.json()["id"])
        if built["state"] != "succeeded":
            raise SystemExit(f"the build of {name} has {built['state']}: {built['error']}")
        made.wait(lambda: server.serves(name), f"{name} to be served", 60)

    with Peak(worker) as peak:
        spent = meter.spent(run).beyond(idle)
    time.sleep(5)
    shown.add_row(f"a build of {name} and its load: seconds", f"{spent.wall_s - 1.5:.1f}")
    shown.add_row("  processor s", f"{spent.cpu_s:.1f}")
    shown.add_row("  most memory of the worker, MB", f"{peak.mb:.0f}")
    shown.add_row("  transactions", f"{spent.transactions:.0f}")
    shown.add_row(
        "  memory of the server afterwards, MB more", f"{memory_mb(server, 'service.server') - before_mb:.0f}"
    )
    server.infer(name)
    shown.add_row("  series of Prometheus, more", str(series(server) - before))


def series(server: Octet) -> int:
    """Time series that Prometheus gets from a server."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(not line.startswith("#") for line in lines)


def polls(made: Fleet, shown: Table) -> None:
    """How many looks at the catalog's revision the database answers a second, and what each takes of it."""
    url = made.environment["OCTET_DATABASE_URL"]
    counts = [0] * POLLERS
    until_s = time.monotonic() + 5.0

    def poll(place: int) -> None:
        catalog = Catalog(url)
        while time.monotonic() < until_s:
            catalog.revision()
            counts[place] += 1
        catalog.close()

    used_s = sum(cpu_s(pid) for pid in postgres())
    threads = [threading.Thread(target=poll, args=(place,)) for place in range(POLLERS)]
    for thread in threads:
        thread.start()
    time.sleep(4.5)
    # While the sessions are there: the time of one that has ended counts for the parent twice.
    used_s, done = sum(cpu_s(pid) for pid in postgres()) - used_s, sum(counts)
    for thread in threads:
        thread.join()
    shown.add_row(f"looks at the revision/s, {POLLERS} at a time on these cores", f"{done / 4.5:,.0f}")
    shown.add_row("  processor us of the database for each", f"{used_s / done * 1e6:.0f}")


def postgres() -> list[int]:
    """Processes of the database."""
    return [pid for pid, _, command in processes() if b"postgres" in command]


if __name__ == "__main__":
    sys.exit(main())
