"""What the members of a fleet use, and what its database and its store are asked meanwhile."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import sqlalchemy as sa
from moto.server import DomainDispatcherApplication

from loadtests.serving import processes
from service.catalog.schema import create_engine
from service.processes.memory import resident_bytes
from tests.integration.fleet import Fleet
from tests.integration.running import Octet

METHODS = ("GET", "HEAD", "LIST", "PUT", "POST", "DELETE")
"""What a store is asked, which prices go by. POST begins or ends a file in parts, or deletes many."""
_REPORT_S = 1.5
"""Sessions of the database report a second late."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What went by between two readings, or in one second of idleness."""

    wall_s: float
    # Seconds of processors, transactions, rows, requests and bytes of the store, by name.
    counts: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.counts.get(name, 0.0)

    def beyond(self, idle: "Spent") -> "Spent":
        """This without what would have been spent in idleness, of which `idle` is a second.

        Requests to the store stay: in idleness there are but those of sweeps, minutes apart.
        """
        return Spent(
            wall_s=self.wall_s,
            counts={
                name: count - (0.0 if name in METHODS else idle[name] * self.wall_s)
                for name, count in self.counts.items()
            },
        )

    def a_second(self) -> "Spent":
        return Spent(wall_s=1.0, counts={name: count / self.wall_s for name, count in self.counts.items()})

    def requests(self) -> str:
        """Those to the store, for people."""
        asked = [f"{self[name]:.0f} {name}" for name in METHODS if round(self[name])]
        return ", ".join(asked) or "none"


class Meter:
    """Reads what the members of a fleet use and what their database and their store count."""

    def __init__(self, made: Fleet, asked: Counter[str]) -> None:
        """`asked` is what `counting_store` counts."""
        self._made = made
        self._asked = asked
        url = sa.make_url(made.environment["OCTET_DATABASE_URL"])
        self._name = url.database
        self._engine = create_engine(str(url)).execution_options(isolation_level="AUTOCOMMIT")

    def spent(self, work: Callable[[], object]) -> Spent:
        """What `work` takes."""
        time.sleep(_REPORT_S)
        before, start_s = self._reading(), time.monotonic()
        work()
        time.sleep(_REPORT_S)
        wall_s = time.monotonic() - start_s
        after = self._reading()
        return Spent(wall_s=wall_s, counts={name: after[name] - before.get(name, 0) for name in after})

    def begun(self, work: Callable[[], object]) -> int:
        """How many transactions `work` has anybody begin, by the database's log: looks at the revision are none.

        What it counts of all transactions comes late, and says little of a few.
        """
        with self._engine.connect() as connection:
            log = Path(connection.execute(sa.text("SHOW data_directory")).scalar_one()) / "log"
        self._log("all")
        start_bytes = log.stat().st_size
        work()
        begun = log.read_bytes()[start_bytes:].count(b": BEGIN")
        self._log("none")
        return begun

    def connections(self) -> int:
        """Open connections to the fleet's database but this one."""
        return int(self.scalar("SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = :name"))

    def kept(self, tables: str) -> tuple[int, int]:
        """Rows and their bytes, indices not counted, in the tables of a schema whose names are LIKE this."""
        rows = size_bytes = 0
        for table in self._tables(tables):
            counted = f"SELECT count(*), coalesce(sum(pg_column_size(t.*)), 0) FROM {table} t"
            with self._engine.connect() as connection:
                found = connection.execute(sa.text(counted)).one()
            rows, size_bytes = rows + int(found[0]), size_bytes + int(found[1])
        return rows, size_bytes

    def scalar(self, query: str) -> float:
        with self._engine.connect() as connection:
            return float(connection.execute(sa.text(query), {"name": self._name}).scalar_one())

    def execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(sa.text(statement))

    def close(self) -> None:
        self._engine.dispose()

    def _log(self, statements: str) -> None:
        self.execute(f"ALTER SYSTEM SET log_statement = '{statements}'")
        self.execute("SELECT pg_reload_conf()")
        # Sessions read it before their next statement, once the server has told them.
        time.sleep(0.5)

    def _tables(self, pattern: str) -> list[str]:
        named = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname || '.' || tablename LIKE :like"
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(named), {"like": pattern}).scalars())

    def _reading(self) -> dict[str, float]:
        counted = "FROM pg_stat_database WHERE datname = :name"
        return {
            "cpu_s": sum(cpu_s(pid) for member in self._made.members for pid in member.processes()),
            "database_cpu_s": sum(map(cpu_s, postgres())),
            "transactions": self.scalar(f"SELECT xact_commit + xact_rollback {counted}"),
            **self._asked,
        }


@contextmanager
def counting_store() -> Iterator[Counter[str]]:
    """Counts what the S3 servers are asked that start in the block: requests by method, bytes sent and stored."""
    asked: Counter[str] = Counter(dict.fromkeys((*METHODS, "sent_bytes", "stored_bytes"), 0))
    answer = DomainDispatcherApplication.__call__

    def counted(
        self: DomainDispatcherApplication, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method == "GET" and "list-type" in parse_qs(environ.get("QUERY_STRING", "")):
            method = "LIST"
        asked[method] += 1
        if method == "PUT":
            asked["stored_bytes"] += int(environ.get("CONTENT_LENGTH") or 0)

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if method == "GET":
                asked["sent_bytes"] += sum(
                    int(value) for name, value in headers if name.lower() == "content-length"
                )
            return start_response(status, headers, *rest)

        answered: Iterable[bytes] = answer(self, environ, started)
        return answered

    DomainDispatcherApplication.__call__ = counted
    try:
        yield asked
    finally:
        DomainDispatcherApplication.__call__ = answer


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


def postgres() -> list[int]:
    """Processes of PostgreSQL as `tests.databases` starts it."""
    servers = {
        pid for pid, _, command in processes() if b"/postgres\0" in command and b"octet-pg-" in command
    }
    return [pid for pid, parent, _ in processes() if pid in servers or parent in servers]
