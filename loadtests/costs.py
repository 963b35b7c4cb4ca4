"""What a server, a worker, a model and a build cost, and what the database sees of them: `python -m loadtests.costs`.

One server, then a worker beside it, on a real PostgreSQL and an S3 server, all on this machine. Idle costs are taken
over a while in which nothing happens; those of a build and the load that follows are what was counted beyond them.
Versions are promoted, and another server starts. Then the query by which servers follow the catalog is put to the
database as fast as it answers. About five minutes.
docs/scaling.md draws its figures for large fleets from this.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.metering import Meter, Peak, Spent, counting_store, cpu_s, memory_mb, postgres
from service.catalog.catalog import Catalog
from tests.databases import postgresql
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet

VIT = Path(__file__).parent / "models" / "vit.onnx"
POLLERS = 4
# dbos looks for schedules every second in its first minute, and every half a minute from then on.
_SETTLED_S = 65.0
_PROMOTIONS = 10


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.costs", description=__doc__)
    parser.add_argument("--idle-s", type=float, default=20.0)
    idle_s: float = parser.parse_args().idle_s
    shown = Table("", "", box=box.SIMPLE, show_header=False)
    with (
        tempfile.TemporaryDirectory(prefix="octet-costs-") as folder,
        counting_store() as asked,
        postgresql() as database,
        fleet(Path(folder), database, OCTET_THREADS="2") as made,
    ):
        meter = Meter(made, asked)
        idle = members(made, meter, idle_s, shown)
        for name, onnx in (("digits", None), ("vit", VIT.read_bytes())):
            build(made, meter, idle, name, onnx, shown)
        promotions(made, meter, shown)
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
    time.sleep(_SETTLED_S)
    both = meter.spent(lambda: time.sleep(idle_s)).a_second()
    shown.add_row("a worker: memory of its processes, MB", f"{memory_mb(worker):.0f}")
    shown.add_row("  connections", str(meter.connections() - connections))
    add_idle(shown, both.beyond(alone))
    return both


def add_idle(shown: Table, idle: Spent) -> None:
    shown.add_row("  idle: processor ms/s", f"{idle['cpu_s'] * 1e3:.1f}")
    shown.add_row("  idle: transactions/s", f"{idle['transactions']:.1f}")
    shown.add_row("  idle: processor ms/s of the database", f"{idle['database_cpu_s'] * 1e3:.1f}")


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

    kept = meter.kept("dbos.%"), meter.kept("public.%")
    with Peak(worker) as peak:
        spent = meter.spent(run).beyond(idle)
    time.sleep(5)
    shown.add_row(f"a build of {name} and its load: seconds", f"{spent.wall_s - 1.5:.1f}")
    shown.add_row("  processor s", f"{spent['cpu_s']:.1f}")
    shown.add_row("  most memory of the worker, MB", f"{peak.mb:.0f}")
    shown.add_row("  transactions", f"{spent['transactions']:.0f}")
    shown.add_row("  requests to the store", spent.requests())
    shown.add_row("  KB stored, sent", f"{spent['stored_bytes'] / 1e3:.0f}, {spent['sent_bytes'] / 1e3:.0f}")
    for what, (rows, size_bytes), pattern in zip(
        ("the queue", "the catalog"), kept, ("dbos.%", "public.%"), strict=True
    ):
        rows_now, bytes_now = meter.kept(pattern)
        shown.add_row(
            f"  more rows of {what}, and their bytes", f"{rows_now - rows}, {bytes_now - size_bytes}"
        )
    shown.add_row(
        "  memory of the server afterwards, MB more", f"{memory_mb(server, 'service.server') - before_mb:.0f}"
    )
    server.infer(name)
    shown.add_row("  series of Prometheus, more", str(series(server) - before))


def series(server: Octet) -> int:
    """Time series that Prometheus gets from a server."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(not line.startswith("#") for line in lines)


def promotions(made: Fleet, meter: Meter, shown: Table) -> None:
    """Promotions and roll-backs between two versions that are in memory: of one server, and where another follows."""
    (server,) = made.servers
    built = made.ended(server.upload("digits", force=True, promote=False).json()["id"])
    if built["state"] != "succeeded":
        raise SystemExit(f"the second build of digits has {built['state']}: {built['error']}")
    made.wait(lambda: loaded(server, "digits") == 2, "both versions to be in memory", 60)
    for worker in made.workers:
        worker.stop()
    promote(meter, server, "a promotion or a roll-back, one server follows", shown)
    second = made.add_server()

    def start() -> None:
        made.wait_until_ready()
        made.wait(lambda: loaded(second, "digits") == 2 and second.serves("vit"), "all to be loaded", 120)

    spent = meter.spent(start)
    shown.add_row("another server starts and loads 3 versions: requests to the store", spent.requests())
    shown.add_row("  KB sent by the store", f"{spent['sent_bytes'] / 1e3:.0f}")
    shown.add_row("  transactions", f"{spent['transactions']:.0f}")
    promote(meter, server, "a promotion or a roll-back, two servers follow", shown)


def promote(meter: Meter, server: Octet, name: str, shown: Table) -> None:
    idle = meter.spent(lambda: time.sleep(15.0)).a_second()

    def work() -> None:
        for number in range(_PROMOTIONS):
            promoted = server.client.put("/v1/models/digits/default", json={"version": 2 - number % 2})
            promoted.raise_for_status()
            # Long enough for all that follow to see each.
            time.sleep(1.2)

    spent = meter.spent(work).beyond(idle)
    shown.add_row(f"{name}: transactions", f"{meter.begun(work) / _PROMOTIONS:.1f}")
    shown.add_row("  processor ms of octet", f"{spent['cpu_s'] / _PROMOTIONS * 1e3:.0f}")
    shown.add_row("  processor ms of the database", f"{spent['database_cpu_s'] / _PROMOTIONS * 1e3:.1f}")
    shown.add_row("  requests to the store", spent.requests())


def loaded(server: Octet, model: str) -> int:
    """How many versions of a model answer."""
    versions = server.client.get(f"/v1/models/{model}").json()["versions"]
    return sum(version["state"] == "ready" for version in versions)


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


if __name__ == "__main__":
    sys.exit(main())
