"""The worker: takes builds from the durable queue and carries them out. `python -m service.worker [--once SECONDS]`."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from service.builds.ended_runs import EVERY_S as FORGET_EVERY_S
from service.builds.ended_runs import forget_ended
from service.builds.errand import Errand
from service.builds.heartbeat import Heartbeat
from service.builds.leases import Leases, worker_name
from service.builds.patience import AWAY_OR_FULL, patiently
from service.builds.run import Builder
from service.builds.sandbox import Limits, Sandbox
from service.builds.workflow import STEPS, BuildQueue, QueuedRuns
from service.catalog.catalog import Catalog
from service.errors import StartError
from service.monitoring.logs import configure_logging
from service.monitoring.tracing import start_tracing
from service.processes.lifeline import end_with_parent
from service.processes.locks import exclusive
from service.processes.supervisor import READY, REFUSED
from service.retention.periodic import PeriodicSweeps
from service.retention.sweeper import Sweeper
from service.settings import MIB, Settings
from service.storage.disk_space import check_room
from service.storage.stores import open_store

logger = logging.getLogger(__name__)

_SWEEP_S = 0.2
_SHARED_SWEEP_S = 1.0
"""Every worker asks the same database."""
_TAKE_BACK_S = 2.0
_UNCLAIMED_S = 5.0
"""Rare, and asks the queue too."""
_GIVE_UP_S = 5.0
_MARK_S = 1.0
_AFTER_FAILURE_S = 5.0
"""What fails may fail for long: the log is not filled with it."""
_LEAST_ROOM_BYTES = 4 * MIB
"""What a worker begins with: room for the notes of a build."""
_NICENESS = "10"
"""Builds leave the processors to requests where both want them."""
_FAREWELL_S = 2.0
"""How long a worker that is to stop waits for a database to tell the others."""


@dataclass(frozen=True, kw_only=True)
class Duty:
    """How long this worker works."""

    # Seconds that it waits for the one build after which it ends; None to build for ever.
    once_s: float | None = None

    @property
    def ends(self) -> bool:
        """Whether it ends after one build."""
        return self.once_s is not None

    @property
    def cut_short(self) -> int:
        """Exit status of a worker that is stopped, or gives way.

        For one that builds for ever that is as good an end as any. One that came for a build has not done it: whoever
        started it is told to try again.
        """
        return os.EX_TEMPFAIL if self.ends else 0


def main(arguments: Sequence[str]) -> None:
    """Runs until SIGTERM, or until one build is done.

    Stopping is a crash on purpose: whatever goes on is durable, and the next worker goes on with it.
    """
    end_with_parent()
    duty = _duty(arguments)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(duty.cut_short))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.load()
    configure_logging("worker")
    # An earlier worker whose supervisor was killed may need a moment to end: never run beside it.
    with exclusive(settings.home / "worker.lock", wait_s=float("inf")):
        run(settings, duty)


def _duty(arguments: Sequence[str]) -> Duty:
    parser = argparse.ArgumentParser(prog="service.worker")
    parser.add_argument("--once", dest="once_s", type=float, metavar="SECONDS")
    return Duty(**vars(parser.parse_args(arguments)))


def run(settings: Settings, duty: Duty) -> None:
    """Works through the queue, for ever or for one build."""

    def give_way() -> NoReturn:
        """Ends this worker at once: what it was at is with another, and it must record nothing any more."""
        os._exit(duty.cut_short)

    mark = settings.home / READY
    # Left by a worker before this one: it must not grow old while this one waits for a database.
    mark.unlink(missing_ok=True)
    # Else it would end at its first note, and be started again and again.
    patiently(lambda: check_room(settings.home, _LEAST_ROOM_BYTES), waits_for=AWAY_OR_FULL)
    catalog = patiently(lambda: Catalog(settings.catalog_url), waits_for=AWAY_OR_FULL)
    store = open_store(settings)
    leases = Leases(catalog, worker=worker_name(settings.home), hardware=_hardware(settings), steps=STEPS)
    heartbeat = Heartbeat(leases, give_way=give_way)
    builder = Builder(
        catalog=catalog,
        store=store,
        folder=settings.home / "work",
        sandbox=lambda: build_sandbox(settings),
        give_way=give_way,
        spans=start_tracing("worker"),
    )
    builder.clear()
    queue = BuildQueue(settings.queue_url, builder=builder, catalog=catalog, leases=leases, once=duty.ends)
    patiently(heartbeat.start, waits_for=AWAY_OR_FULL)
    signal.signal(signal.SIGTERM, lambda *_: _stop(leases, heartbeat, duty.cut_short))
    queue.launch()
    PeriodicSweeps(Sweeper(settings, catalog, store), every_s=settings.sweep_every_s).start()
    mark.touch()
    logger.info("ready for builds as %s, on %s", leases.worker, leases.hardware)
    chores = [
        # Here and not with the heartbeat, which goes on where this loop hangs.
        Chore(mark.touch, every_s=_MARK_S),
        Chore(lambda: take_back(leases, heartbeat), every_s=_TAKE_BACK_S),
        Chore(lambda: take_unclaimed(queue, heartbeat), every_s=_UNCLAIMED_S),
        Chore(queue.sweep, every_s=_SHARED_SWEEP_S if settings.shared else _SWEEP_S),
        Chore(queue.give_up, every_s=_GIVE_UP_S),
        Chore(lambda: forget_ended(catalog, QueuedRuns()), every_s=FORGET_EVERY_S),
    ]
    _tend(chores, None if duty.once_s is None else Errand(queue, idle_s=duty.once_s))
    # Else what the queue alone is done with waits for another worker, and for the end of this one's lease.
    patiently(queue.give_up, waits_for=AWAY_OR_FULL)
    logger.info("%s: this worker ends", "its build is done" if queue.begun else "no build came for it")
    _leave(leases, heartbeat, 0)


def _tend(chores: Sequence["Chore"], errand: Errand | None) -> None:
    """Does what is due until the errand is done; for ever without one."""
    while errand is None or not errand.done():
        for chore in chores:
            chore.run_if_due()
        time.sleep(_SWEEP_S)


def take_back(leases: Leases, heartbeat: Heartbeat) -> None:
    """Takes builds from dead workers, once this one can tell which are."""
    if heartbeat.steady:
        for build_id in leases.take_back():
            logger.warning(
                "build %s goes back to the queue: its worker is dead, its hardware or its steps are gone",
                build_id,
            )


def take_unclaimed(queue: BuildQueue, heartbeat: Heartbeat) -> None:
    """Takes builds from workers that died before they began them, under the same condition."""
    if heartbeat.steady:
        for build_id in queue.take_back():
            logger.warning(
                "build %s goes back to the queue: the worker that it was given to died before it began",
                build_id,
            )


def _stop(leases: Leases, heartbeat: Heartbeat, status: int) -> None:
    # Not in the main thread: the signal may have come in the middle of its own use of the database.
    threading.Thread(target=_leave, args=(leases, heartbeat, status)).start()


def _leave(leases: Leases, heartbeat: Heartbeat, status: int) -> NoReturn:
    """Ends this worker with `status`, and tells the others, so that they need not wait for its lease."""
    threading.Timer(_FAREWELL_S, os._exit, (status,)).start()
    heartbeat.stop()
    with contextlib.suppress(Exception):
        leases.leave()
    os._exit(status)


def _hardware(settings: Settings) -> str:
    with build_sandbox(settings) as sandbox:
        return str(sandbox.call("hardware", {}, what="finding out what hardware this is"))


def build_sandbox(settings: Settings) -> Sandbox:
    """A sandbox for one build."""
    limits = Limits(timeout_s=settings.build_timeout_s, memory_bytes=settings.build_memory_bytes)
    environment = os.environ | {
        "OCTET_THREADS": str(settings.threads),
        "OCTET_ENGINE_CACHE": str(settings.engine_cache),
        "OCTET_NICENESS": _NICENESS,
        # Where other machines could read them.
        "OCTET_SHARE_ENGINES": "1" if settings.shared else "",
        # A read-only installation has no place for it beside the code.
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR") or str(settings.home / "numba"),
    }
    return Sandbox(limits, environment=environment)


class Chore:
    """Something to be done every now and then, of which a failure must not end the worker."""

    def __init__(self, work: Callable[[], object], *, every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._due_at = time.monotonic()

    def run_if_due(self) -> None:
        """Does it, unless it was done less than its interval ago."""
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + self._every_s
        try:
            self._work()
        except Exception:
            pause_s = max(self._every_s, _AFTER_FAILURE_S)
            self._due_at = time.monotonic() + pause_s
            logger.exception("a chore of the worker failed; it is tried again in %g s", pause_s)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StartError as error:
        sys.stderr.write(f"octet: {error}\n")
        sys.exit(REFUSED)
