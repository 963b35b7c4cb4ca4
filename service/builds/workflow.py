"""The durable queue of builds: dbos runs each build step by step and goes on after any crash.

The catalog is the outbox: an accepted build is a row there, and a worker puts every unfinished row into the
queue under the build's id, which dbos takes once however often it is told. So a server needs no connection to
the queue, and no crash between the row and the queue can lose a build. There is a queue for each kind of hardware:
an engine is compiled and verified by a worker on hardware like the server's. What a dead worker was at, another
puts into the queue again (`service.builds.leases`), and dbos goes on behind the last step that was recorded; so with
what it had been given and had not begun.
"""

import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID
from dbos import error as dbos_errors

from service.builds.crashpoints import reached
from service.builds.leases import Leases
from service.builds.patience import AWAY_OR_FULL, patiently
from service.builds.run import Builder
from service.catalog.catalog import Catalog
from service.catalog.connections import checked_arguments
from service.catalog.schema import create_engine, translated
from service.errors import NotFoundError, StartError

logger = logging.getLogger(__name__)

STEPS = 1
"""The steps' number, raised by hand when they change so that a build of the earlier code cannot go on: such builds
then begin again. dbos would otherwise derive it from the source and from its own release, and strand every unfinished
build at each change of either."""

_LISTEN_POLL_S = 60.0
"""Nobody waits for what dbos would hear."""
_QUEUE_POLL_S = 0.2
_SHARED_QUEUE_POLL_S = 1.0
"""Every worker asks the same database."""
_KEPT_CONNECTIONS = 3
"""Of the queue, to a shared database: dbos always holds one, for jobs that one worker does for all."""
_MORE_CONNECTIONS = 4
"""For a moment, where its threads ask at the same time."""
_MOST_CLAIMS = 100
"""A build that was begun so often, because its worker died each time, is given up."""

_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
"""How dbos says that it is done with a run."""


class QueuedRuns:
    """The runs that the queue knows, for `service.builds.ended_runs`."""

    def ended(self, before: str, *, limit: int, offset: int) -> list[str]:
        found = DBOS.list_workflows(
            status=list(_ENDED),
            name="build",
            end_time=before,
            limit=limit,
            offset=offset,
            load_input=False,
            load_output=False,
        )
        return [status.workflow_id for status in found]

    def delete(self, names: list[str]) -> None:
        DBOS.delete_workflows(names)


class BuildQueue:
    """Runs builds, one at a time, from the queue at `url`. dbos allows one in a process."""

    def __init__(
        self, url: str, *, builder: Builder, catalog: Catalog, leases: Leases, once: bool = False
    ) -> None:
        """With `once`, no build is taken after the first that begins."""
        self._url = url
        self._once = once
        self._begun = False
        # Ids of the builds being carried out; one, but for dbos' word on it.
        self._under_way: list[str] = []
        self._dbos: DBOS | None = None
        self._catalog = catalog
        self._leases = leases
        self._name = f"builds-{leases.hardware}"

        # A function: dbos marks what it registers, and a bound method takes no mark.
        def build(build_id: str) -> None:
            self._under_way.append(build_id)
            try:
                _carry_out(builder, leases, build_id, begin=self._begin)
            except sa.exc.DBAPIError as error:
                # What dbos makes of it would be the end of the build; a worker that starts again goes on with it.
                logger.warning("the queue cannot note a step (%s): this worker starts again", error.orig)
                builder.give_way()
            finally:
                self._under_way.remove(build_id)

        # The count of our own goes through all workers; dbos begins anew with each.
        self._workflow = DBOS.workflow(name="build", max_recovery_attempts=None)(build)

    def launch(self) -> None:
        """Opens the queue, takes up what this worker was at before, and begins to run builds.

        Raises:
            StartError: a shared database whose tables are older than this code.
        """
        patiently(lambda: _use_write_ahead_log(self._url), waits_for=AWAY_OR_FULL)
        _quiet_dbos()
        config: DBOSConfig = {
            "name": "octet",
            "system_database_url": self._url,
            "application_version": str(STEPS),
            "executor_id": self._leases.worker,
            "serializer": DBOSPortableJSONSerializer(),
            "run_migrations": self._url.startswith("sqlite"),
            "enable_otlp": False,
            "log_level": "WARNING",
            # Builds are waited for by nobody inside of dbos: no connection has to listen for their ends.
            "use_listen_notify": False,
            "notification_listener_polling_interval_sec": _LISTEN_POLL_S,
        }
        if not self._url.startswith("sqlite"):
            config["db_engine_kwargs"] = checked_arguments() | {"max_overflow": _MORE_CONNECTIONS}
            config["sys_db_pool_size"] = _KEPT_CONNECTIONS
        self._dbos = DBOS(config=config)
        DBOS.listen_queues([self._name])
        try:
            DBOS.launch()
        except dbos_errors.DBOSInitializationError as error:
            raise StartError(
                f"the queue's tables are older than this octet ({error}); run octet migrate with the same "
                "OCTET_DATABASE_URL first."
            ) from error
        poll_s = _QUEUE_POLL_S if self._url.startswith("sqlite") else _SHARED_QUEUE_POLL_S
        DBOS.register_queue(self._name, worker_concurrency=1, polling_interval_sec=poll_s)

    @property
    def begun(self) -> bool:
        """Whether this process has begun with a build."""
        return self._begun

    @property
    def idle(self) -> bool:
        """Whether no build is being carried out here."""
        return not self._under_way

    def stop_listening(self) -> None:
        """Takes no more builds from the queue; what goes on goes on, and accepted builds are still put into it.

        dbos has no word for this that leaves a running workflow alone for as long as it takes: these events are what
        its own end begins with.
        """
        if self._dbos is not None:
            for event in self._dbos.background_thread_stop_events:
                event.set()

    def _begin(self) -> None:
        self._begun = True
        if self._once:
            # While the build goes on: as long as it does, dbos takes no second one beside it.
            self.stop_listening()

    def sweep(self) -> None:
        """Puts accepted builds into the queue."""
        self._leases.hand_out(self._put)

    def _put(self, build_id: str) -> str:
        """Sees to it that the build is in this queue, whatever was there of it before; returns its name in there."""
        run = self._leases.run_of(build_id)
        reached("enqueue.before")
        with SetWorkflowID(run):
            DBOS.enqueue_workflow(self._name, self._workflow, build_id)
        status = DBOS.get_workflow_status(run)
        if status is not None and (status.status == "PENDING" or status.queue_name != self._name):
            # It is with a worker that is dead, or waits for hardware that is not there.
            DBOS.resume_workflow(run, queue_name=self._name)
        reached("enqueue.after")
        return run

    def take_back(self) -> list[str]:
        """Takes builds from workers that died between the queue's word and the claim; gives their ids.

        The next `sweep` puts them into the queue again.
        """
        return self._leases.take_unclaimed(self._holders)

    def _holders(self) -> dict[str, str]:
        """Which worker has which run, of all that the queue has given away."""
        given = DBOS.list_workflows(
            status="PENDING", queue_name=self._name, load_input=False, load_output=False
        )
        return {run.workflow_id: run.executor_id for run in given if run.executor_id is not None}

    def give_up(self) -> None:
        """Fails builds that the queue is done with although the catalog is not.

        They are this worker's, or were another's that died before it could do the same.
        """
        builds = self._leases.unfinished()
        if not builds:
            return
        for status in DBOS.list_workflows(workflow_ids=list(builds), status=list(_ENDED), load_input=False):
            reason = f"{status.status.lower()}: {status.error}" if status.error else status.status.lower()
            self._catalog.fail(
                builds[status.workflow_id],
                error=f"the build could not be carried out ({reason}); "
                "look into the worker's log, then upload again with ?force=true.",
                code="build.internal",
            )


def migrate_queue(url: str) -> None:
    """Brings the queue's tables up to what this release of dbos reads and writes."""
    _quiet_dbos()
    DBOS.migrate(url)


def _carry_out(builder: Builder, leases: Leases, build_id: str, *, begin: Callable[[], None]) -> None:
    """The workflow: dbos records what each step returns, and replays that after a crash.

    `begin` is called once a build that has not ended is this worker's.
    """
    reached("claim.before")
    claim = patiently(lambda: leases.claim(build_id, str(DBOS.workflow_id)))
    if claim is None:
        return
    # One that was cancelled while it waited is none to end with.
    if _goes_on(builder.catalog, build_id):
        begin()
    reached("claim.taken")
    if claim > _MOST_CLAIMS:
        builder.catalog.fail(
            build_id,
            error=f"the build was begun {_MOST_CLAIMS} times and its worker died each time; look into the workers' "
            "logs, then upload again with ?force=true.",
            code="build.internal",
        )
        return
    with builder.run(build_id, claim) as run:
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


def _goes_on(catalog: Catalog, build_id: str) -> bool:
    try:
        return not patiently(lambda: catalog.build(build_id), waits_for=AWAY_OR_FULL).state.ended
    except NotFoundError:
        # Cancelled and forgotten.
        return False


def _use_write_ahead_log(url: str) -> None:
    """Chooses SQLite's write-ahead log, which stays with the file; dbos leaves it at the rollback journal.

    Raises:
        StorageFullError: there is no room even to open it.
    """
    if url.startswith("sqlite"):
        engine = create_engine(url)
        try:
            with translated(), engine.connect():
                """Opened as the catalog is, and so with that log."""
        finally:
            engine.dispose()


def _quiet_dbos() -> None:
    """Sends the log of dbos where ours goes, from warnings up."""
    log = logging.getLogger("dbos")
    log.addHandler(logging.NullHandler())
    log.propagate = True
