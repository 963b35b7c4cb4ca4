"""What a catalog of 1,000 models costs a server: `python -m loadtests.many_models`.

One model is built; then the rows of its version are copied under as many names, three versions each, whose files are
all the same. The server, which may have few of them in memory, starts anew, waits, follows changes, and lists. On a
real PostgreSQL and an S3 server, all on this machine. About three minutes. docs/scaling.md takes figures from this.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.metering import Meter, Spent, counting_store, memory_mb
from tests.databases import postgresql
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet

VERSIONS = 3
_CHANGES = 5
_MOST_BYTES = 200_000_000
"""Memory of all versions: that of a few."""
_COPIES = """
INSERT INTO models SELECT 'copy-' || n, {versions}, {versions} + 1, created_at
  FROM models, generate_series(1, {models}) n WHERE name = 'digits';
INSERT INTO builds (id, model, fingerprint, options, state, progress, timings, files, version, created_at, started_at,
                    finished_at, claim)
  SELECT md5(n || '-' || v), 'copy-' || n, md5(n || '-' || v), options, state, progress, timings, files, v, created_at,
         started_at, finished_at, claim
  FROM builds, generate_series(1, {models}) n, generate_series(1, {versions}) v WHERE model = 'digits';
INSERT INTO versions (model, number, build_id, files, options, summary, created_at)
  SELECT 'copy-' || n, v, md5(n || '-' || v), files, options, summary, created_at
  FROM versions, generate_series(1, {models}) n, generate_series(1, {versions}) v WHERE model = 'digits';
INSERT INTO engines (model, number, hardware, state, files, changed_at)
  SELECT 'copy-' || n, v, hardware, state, files, changed_at
  FROM engines, generate_series(1, {models}) n, generate_series(1, {versions}) v WHERE model = 'digits';
UPDATE revision SET value = value + 1;
"""


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.many_models", description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    models: int = parser.parse_args().models
    shown = Table("", "one model", f"{models:,} more", box=box.SIMPLE)
    with (
        tempfile.TemporaryDirectory(prefix="octet-many-") as folder,
        counting_store() as asked,
        postgresql() as database,
        fleet(Path(folder), database, OCTET_THREADS="2", OCTET_MAX_LOADED_BYTES=str(_MOST_BYTES)) as made,
    ):
        meter = Meter(made, asked)
        server, worker = made.add_server(), made.add_worker()
        made.wait_until_ready()
        built = made.ended(server.upload().json()["id"])
        if built["state"] != "succeeded":
            raise SystemExit(f"the build has {built['state']}: {built['error']}")
        worker.stop()
        few = measured(made, meter, server)
        meter.execute(_COPIES.format(models=models, versions=VERSIONS))
        meter.execute("ANALYZE")
        many = measured(made, meter, server)
        for name, value in few.items():
            shown.add_row(name, value, many[name])
        meter.close()
    Console(width=110).print(shown)
    return 0


def measured(made: Fleet, meter: Meter, server: Octet) -> dict[str, str]:
    """What the server costs with the catalog as it is, by name."""
    server.stop()
    started_s = time.monotonic()
    server.spawn()
    start = meter.spent(made.wait_until_ready)
    ready_s = time.monotonic() - started_s - 1.5
    made.wait(lambda: server.serves("digits"), "digits to be served", 60)
    time.sleep(5.0)
    idle = meter.spent(lambda: time.sleep(10.0)).a_second()
    changed = meter.spent(lambda: change(meter)).beyond(idle)
    return {
        "start until ready, s": f"{ready_s:.1f}",
        "  requests to the store": start.requests(),
        "  transactions": f"{start['transactions']:.0f}",
        "memory of the server, MB": f"{memory_mb(server, 'service.server'):.0f}",
        "versions in memory": str(in_memory(server)),
        "idle: processor ms/s": f"{idle['cpu_s'] * 1e3:.1f}",
        "idle: transactions/s": f"{idle['transactions']:.1f}",
        "a change of the catalog: processor ms of the server": each(changed, "cpu_s"),
        "  processor ms of the database": each(changed, "database_cpu_s"),
        "GET /v1/models: ms, KB": asked_for(server, "/v1/models"),
        "GET /metrics: ms, KB": asked_for(server, "/metrics"),
        "rows of the catalog, KB": "{:,}, {:,.0f}".format(*with_kb(meter.kept("public.%"))),
    }


def change(meter: Meter) -> None:
    """Says that the catalog has changed, as any promotion does; longer than a server needs to see each."""
    for _ in range(_CHANGES):
        meter.execute("UPDATE revision SET value = value + 1")
        time.sleep(1.2)


def in_memory(server: Octet) -> int:
    models = server.client.get("/v1/models").json()["models"]
    return sum(version["live"] is not None for model in models for version in model["versions"])


def each(spent: Spent, name: str) -> str:
    return f"{spent[name] / _CHANGES * 1e3:.1f}"


def asked_for(server: Octet, path: str) -> str:
    """The quickest of five answers, and its size."""
    times_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        answer = server.client.get(path)
        answer.raise_for_status()
        times_s.append(time.perf_counter() - started_s)
    return f"{min(times_s) * 1e3:.0f}, {len(answer.content) / 1e3:,.0f}"


def with_kb(counted: tuple[int, int]) -> tuple[int, float]:
    rows, size_bytes = counted
    return rows, size_bytes / 1e3


if __name__ == "__main__":
    sys.exit(main())
