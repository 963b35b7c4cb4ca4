"""The durable queue of builds: dbos runs each build step by step and goes on after any crash.

The catalog is the outbox: an accepted build is a row there, and the worker puts every unfinished row into the
queue under the build's id, which dbos takes once however often it is told. So a server needs no connection to
the queue, and no crash between the row and the queue can lose a build.
"""

import logging
import sqlite3
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from service.builds import Builder
from service.catalog import BuildState, Catalog
from service.crashpoints import reached

logger = logging.getLogger(__name__)

WORKFLOW_VERSION = "1"
"""Raised by hand when the steps change so that a build of the earlier code cannot go on. dbos would otherwise
derive it from the source, and strand every unfinished build at each edit."""
EXECUTOR = "worker"
"""dbos's name of this worker: the next worker of the same name takes up what it left."""

_QUEUE = "builds"
_QUEUE_POLL_S = 0.2
_MOST_RECOVERIES = 100
"""A build that has taken its worker down so often is given up."""
_UNFINISHED = (BuildState.QUEUED, BuildState.RUNNING)
_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class BuildQueue:
    """Runs builds, one at a time, from the queue at `url`. dbos allows one in a process."""

    def __init__(self, url: str, *, builder: Builder, catalog: Catalog) -> None:
        self._url = url
        self._catalog = catalog

        # A function: dbos marks what it registers, and a bound method takes no mark.
        def build(build_id: str) -> None:
            _carry_out(builder, build_id)

        self._workflow = DBOS.workflow(name="build", max_recovery_attempts=_MOST_RECOVERIES)(build)
        self._told: set[str] = set()

    def launch(self) -> None:
        """Opens the queue, takes up what an earlier worker left, and begins to run builds."""
        _use_write_ahead_log(self._url)
        _quiet_dbos()
        config: DBOSConfig = {
            "name": "octet",
            "system_database_url": self._url,
            "application_version": WORKFLOW_VERSION,
            "executor_id": EXECUTOR,
            "serializer": DBOSPortableJSONSerializer(),
            "enable_otlp": False,
            "log_level": "WARNING",
            # Builds are waited for by nobody inside of dbos.
            "notification_listener_polling_interval_sec": 60.0,
        }
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(_QUEUE, worker_concurrency=1, polling_interval_sec=_QUEUE_POLL_S)

    def sweep(self) -> None:
        """Puts accepted builds into the queue, and ends those that the queue has given up."""
        unfinished = self._catalog.builds(limit=10_000, states=_UNFINISHED)
        for build in reversed(unfinished):
            if build.id not in self._told:
                reached("enqueue.before")
                with SetWorkflowID(build.id):
                    DBOS.enqueue_workflow(_QUEUE, self._workflow, build.id)
                reached("enqueue.after")
                self._told.add(build.id)
        self._told &= {build.id for build in unfinished}

    def give_up(self) -> None:
        """Fails builds that the queue is done with although the catalog is not."""
        for build in self._catalog.builds(limit=10_000, states=_UNFINISHED):
            status = DBOS.get_workflow_status(build.id)
            if status is not None and status.status in _ENDED:
                self._catalog.fail(
                    build.id,
                    error=f"the build could not be carried out ({_reason(status.status, status.error)}); "
                    "look into the worker's log, then upload again with ?force=true.",
                    code="build.internal",
                )


def _carry_out(builder: Builder, build_id: str) -> None:
    """The workflow: dbos records what each step returns, and replays that after a crash."""
    with builder.run(build_id) as run:
        plan = DBOS.run_step({"name": "plan"}, run.plan)
        files: dict[str, str] = {}
        summary: dict[str, Any] = {}
        if plan is None:
            return
        for number, phase in enumerate(plan):
            outcome = DBOS.run_step({"name": phase["name"]}, run.phase, plan, number, files)
            if outcome is None:
                return
            reached("step.recorded", phase["name"])
            files = {**files, **outcome["files"]}
            summary = outcome["summary"]
        DBOS.run_step({"name": "publish"}, run.publish, plan, files, summary)
        reached("publish.recorded")


def _reason(status: str, error: object) -> str:
    if status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        return f"its worker died {_MOST_RECOVERIES} times over it"
    return f"{status.lower()}: {error}" if error else status.lower()


def _use_write_ahead_log(url: str) -> None:
    """Chooses SQLite's write-ahead log, which stays with the file; dbos leaves it at the rollback journal."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        connection = sqlite3.connect(parsed.database)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()


def _quiet_dbos() -> None:
    """Sends the log of dbos where ours goes, from warnings up."""
    log = logging.getLogger("dbos")
    log.addHandler(logging.NullHandler())
    log.propagate = True
