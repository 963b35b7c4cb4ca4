"""Servers and workers on one PostgreSQL and one S3 server, for tests: what several machines are to octet.

Each has a folder of its own and shares nothing with the others but the two URLs.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.databases import PostgreSQL
from tests.integration.running import ROOT, Octet
from tests.s3 import BUCKET, credentials, s3_server

READY_S = 180.0
"""A server that starts again loads every model first, on a machine with many processes."""


class Fleet:
    """Some servers and workers; any of them may be killed, and the database and the store stopped."""

    def __init__(self, folder: Path, database: PostgreSQL, **environment: str) -> None:
        self.folder = folder
        self.database = database
        self.servers: list[Octet] = []
        self.workers: list[Octet] = []
        self._store = contextlib.ExitStack()
        self._address = self._store.enter_context(s3_server())
        self.environment = {
            "OCTET_DATABASE_URL": database.new_database(),
            "OCTET_STORE_URL": f"s3://{BUCKET}/fleet",
            **credentials(self._address),
            **environment,
        }

    @property
    def members(self) -> list[Octet]:
        return [*self.servers, *self.workers]

    def migrate(self) -> subprocess.CompletedProcess[str]:
        """Runs `octet migrate`."""
        return subprocess.run(
            [sys.executable, "-m", "service.cli", "migrate"],
            cwd=ROOT,
            env={**os.environ, **self.environment, "OCTET_HOME": str(self.folder / "migrating")},
            capture_output=True,
            text=True,
            check=False,
        )

    def add_server(self, **environment: str) -> Octet:
        return self._add(self.servers, "serve", environment)

    def add_worker(self, *arguments: str, **environment: str) -> Octet:
        return self._add(self.workers, "worker", environment, arguments)

    def _add(
        self, members: list[Octet], command: str, environment: dict[str, str], arguments: Sequence[str] = ()
    ) -> Octet:
        home = self.folder / f"{command}-{len(members)}"
        member = Octet(
            home,
            command=command,
            arguments=arguments,
            environment={"OCTET_THREADS": "1", **self.environment, **environment},
        )
        members.append(member)
        member.spawn()
        return member

    def wait_until_ready(self) -> None:
        """Until every server is ready, and every worker takes builds."""
        for server in self.servers:
            self.wait(server.is_ready, "a server to be ready", READY_S)
        for worker in self.workers:
            self.wait((worker.home / "worker.ready").exists, "a worker to take builds", READY_S)

    def revive(self) -> None:
        """Starts again what was killed with its supervisor."""
        for member in self.members:
            if member.poll() is not None:
                member.spawn()

    def stop_store(self) -> None:
        """Refuses connections to the store, which keeps what it has."""
        self._store.close()

    def start_store(self) -> None:
        self._store.enter_context(s3_server(int(self._address.rpartition(":")[2])))

    def build(self, build_id: str) -> dict[str, Any] | None:
        """The build, as any server shows it that answers."""
        for server in self.servers:
            with contextlib.suppress(httpx.TransportError):
                answer = server.client.get(f"/v1/builds/{build_id}")
                if answer.status_code == 200:
                    found: dict[str, Any] = answer.json()
                    return found
        return None

    def ended(self, build_id: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """The build, once it has ended; what was killed is started again meanwhile."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.revive()
            build = self.build(build_id)
            if build is not None and build["state"] not in ("queued", "running"):
                return build
            time.sleep(0.2)
        raise TimeoutError(f"build {build_id} has not ended: {self.build(build_id)}\n{self.logs}")

    def wait(self, condition: Any, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}\n{self.logs}")
            time.sleep(0.05)

    @property
    def logs(self) -> str:
        return "\n".join(f"{member.home.name}:\n{member.log[-2500:]}" for member in self.members)

    def close(self) -> None:
        """Ends everything."""
        for member in self.members:
            member.client.close()
            if member.poll() is None:
                member.stop()
        self._store.close()


@contextlib.contextmanager
def fleet(folder: Path, database: PostgreSQL, **environment: str) -> Iterator[Fleet]:
    """A fleet without members whose database is migrated."""
    made = Fleet(folder, database, **environment)
    try:
        migrated = made.migrate()
        assert migrated.returncode == 0, migrated.stderr
        yield made
    finally:
        made.close()
