"""What a server knows of its versions: which are published, in memory, answering, and why the others are not.

It is state, brought in line with itself by `settle`; `service.serving.caretaker` acts on it,
`service.serving.deployments` answers requests by it. Lives in one event loop.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from engines.reports.report import Verdict
from service.catalog.catalog import Version
from service.monitoring.metrics import Metrics
from service.serving import residency
from service.serving.deployment import Deployment
from service.serving.failures import Failures
from service.serving.flight import FlightRecorder
from service.serving.loading import subject_of
from service.serving.misfits import Misfits
from service.serving.published import Published
from service.serving.quarantine import CrashLog
from service.serving.residency import Key, MemoryLimits, Resident, VersionState, VersionStatus
from service.serving.shelf import Shelf

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_FULL = "memory is full; the next request loads it in place of others"


@dataclass(frozen=True, kw_only=True)
class Care:
    """What a server goes by to stay well."""

    memory: MemoryLimits
    # Where running engines are on record, and what came of it in earlier servers.
    recorder: FlightRecorder
    crashes: CrashLog
    # Batches that run at the same time on the processors that all engines share.
    lanes: int = 1


class Inventory:
    """Published and loaded versions with their states."""

    def __init__(self, *, metrics: Metrics, care: Care, retry_s: float) -> None:
        """`retry_s` is the wait after the first failure of a version."""
        self.published = Published()
        self.loaded: dict[Key, Deployment] = {}
        # What answers for each model where no version is named.
        self.answering: dict[str, Deployment] = {}
        self.shelf = Shelf()
        self.failures = Failures(retry_s=retry_s, clock=time.monotonic)
        self.care = care
        # Defaults of the first look at the catalog that have not been tried yet; None before it.
        self.first: set[Key] | None = None
        # Set when there may be something to load.
        self.changed = asyncio.Event()
        # Set and replaced whenever a state may have changed.
        self.settled = asyncio.Event()
        self._metrics = metrics
        self._status: dict[Key, VersionStatus] = {}
        # What versions took when they were last loaded, by build.
        self._sizes_bytes: dict[str, int] = {}
        self._misfits = Misfits()
        # What has left the routes and still answers what it had admitted.
        self._closing: dict[asyncio.Task[None], Deployment] = {}
        metrics.watch_loaded(lambda: len(self.loaded))

    def status(self, key: Key) -> VersionStatus:
        """What a published version is doing."""
        return self._status.get(key, VersionStatus(state=VersionState.UNLOADED))

    @property
    def inflight_requests(self) -> int:
        """Requests admitted by any version, also one that has left the routes since, and not yet answered."""
        deployments = (*self.loaded.values(), *self._closing.values())
        return sum(deployment.batcher.inflight_requests for deployment in deployments)

    def is_loading(self, key: Key) -> bool:
        """Whether a version waits to be loaded, or is being loaded."""
        return self.status(key).state is VersionState.LOADING

    def publish(self, versions: list[Version]) -> None:
        """Takes over what the catalog says."""
        earlier, self.published = self.published.defaults(), Published(versions)
        defaults = self.published.defaults()
        if self.first is None:
            # Who is suspected of having crashed the server comes last, and readiness does not wait for it.
            suspects = self.care.crashes.suspects
            self.first = {key for key in defaults if self.published[key].build_id not in suspects}
        else:
            for key in defaults - earlier:
                # As important as a request for it, though it sleeps or memory is full.
                self.shelf.call(key)
        self.settle()

    def settle(self) -> None:
        """Brings routes, memory and states in line with what is published and loaded."""
        for key in self.published.defaults() & self.loaded.keys():
            self.answering[key[0]] = self.loaded[key]
        kept = self._kept()
        self.shelf.settle(self.published, kept, self.loaded)
        wanted = set(self.shelf.wanted(kept))
        for key in self.loaded.keys() - wanted:
            self._unload(key)
        known = self.published.keys() | self.loaded.keys()
        self._metrics.retain({(model, str(number)) for model, number in known})
        self.failures.retain(self.published)
        self._status = self._states(wanted)
        if self.first is not None:
            self.first = {key for key in self.first & self.published.keys() if self.is_loading(key)}
        self.changed.set()
        self.tell()

    def tell(self) -> None:
        """Wakes all who wait for a state to change."""
        self.settled.set()
        self.settled = asyncio.Event()

    def next_to_load(self) -> Version | None:
        """The most important version that should be in memory and is not.

        Those that requests wait for come first, then what answered most in earlier servers; who may have crashed
        one of them comes last.
        """
        due = [
            key
            for key in self.shelf.wanted(self._kept())
            if key not in self.loaded and key in self.published and not self.failures.waits(key)
        ]
        suspects, defaults = self.care.crashes.suspects, self.published.defaults()

        def rank(key: Key) -> tuple[bool, bool, bool, int]:
            version = self.published[key]
            batches = self.care.recorder.batches(subject_of(version))
            return version.build_id in suspects, not self.shelf.is_called(key), key not in defaults, -batches

        return self.published[min(due, key=rank)] if due else None

    def make_room(self, version: Version) -> bool:
        """Unloads whom it takes to load a version; False where it has to stay out of memory.

        What answers for the model meanwhile is not counted: it stays until the version is there.
        """
        key = (version.model, version.number)
        residents = self.residents()
        if key in self.published.defaults() and version.model in self.answering:
            del residents[version.model, int(self.answering[version.model].version)]
        size_bytes = self._sizes_bytes.get(version.build_id)
        if size_bytes is None and not self.shelf.is_called(key):
            used_bytes = sum(resident.memory_bytes for resident in residents.values())
            if self._misfits.expects(self.care.memory.max_bytes - used_bytes):
                self._let_untried_sleep()
                return False
        return self._fit(key, residents, size_bytes or 0)

    def install(self, version: Version, deployment: Deployment, refusal: str | None) -> None:
        """Puts a deployment where requests find it. `refusal` says why FP32 answers, where it does instead."""
        key = (version.model, version.number)
        self._sizes_bytes[version.build_id] = deployment.memory_bytes
        self.loaded[key] = deployment
        below_contract = None if refusal else _below_contract(version)
        self._show(version, deployment, below_contract=below_contract is not None)
        self._status[key] = VersionStatus(
            state=VersionState.REFUSED if refusal else VersionState.READY,
            precision=deployment.precision,
            reason=refusal or below_contract,
        )
        called = self.shelf.is_called(key)
        self.settle()
        if key in self.loaded:
            # Only now is it known what it takes.
            self._fit(key, self.residents(), 0, called=called)

    def note_failure(self, key: Key, reason: str) -> None:
        """A version could not be loaded, or does not work: it leaves memory and is tried again later."""
        self.failures.note(key)
        self._status[key] = VersionStatus(state=VersionState.FAILED, reason=reason)
        if key in self.loaded:
            self._unload(key)
        self.settle()

    def retry(self, key: Key) -> None:
        """Has a version tried again at once, whatever became of earlier attempts."""
        self.failures.forget(key)
        self.shelf.call(key)
        if key not in self.loaded:
            self._status[key] = VersionStatus(state=VersionState.LOADING)
        self.settle()

    def sleep(self, key: Key, reason: str) -> None:
        """Has a version leave memory, or not enter it, until a request comes."""
        logger.info("version %d of %s sleeps: %s", key[1], key[0], reason, extra=concerned(key))
        self.shelf.sleep(key, reason)
        self.settle()

    def residents(self) -> dict[Key, Resident]:
        """Who is in memory."""
        return {
            key: Resident(
                memory_bytes=deployment.memory_bytes,
                used_s=deployment.engine.used_s,
                busy=deployment.batcher.inflight_requests > 0,
                called=self.shelf.is_called(key),
            )
            for key, deployment in self.loaded.items()
        }

    async def close(self) -> None:
        """Answers what was admitted and closes every engine. Idempotent."""
        for key in list(self.loaded):
            self._unload(key)
        await asyncio.gather(*self._closing)

    def _fit(
        self, key: Key, residents: dict[Key, Resident], needed_bytes: int, *, called: bool = False
    ) -> bool:
        """Keeps memory within its limit with a version that is there, or needs so much more."""
        called = called or self.shelf.is_called(key)
        leaving = residency.evicted(residents, needed_bytes, self.care.memory, kept={key})
        # A version that nobody asked for takes nobody's place.
        if leaving is not None and (called or not leaving):
            for other in leaving:
                self.sleep(other, "memory is full and others were used later; the next request loads it")
            return True
        own_bytes = needed_bytes or self._sizes_bytes[self.published[key].build_id]
        if own_bytes > self.care.memory.max_bytes:
            self.note_failure(
                key,
                f"it takes {own_bytes / _MIB:.0f} MiB of memory, and all versions together may take "
                f"{self.care.memory.max_bytes / _MIB:.0f} MiB; raise OCTET_MAX_LOADED_BYTES",
            )
        else:
            if not needed_bytes:
                self._misfits.note(own_bytes)
            self.sleep(key, _FULL)
        return False

    def _let_untried_sleep(self) -> None:
        """All at once: where there are thousands, each by itself would keep requests waiting."""
        untried = [
            key
            for key in self.shelf.wanted(self._kept())
            if key in self.published
            and not self.shelf.is_called(key)
            and self.published[key].build_id not in self._sizes_bytes
        ]
        for key in untried:
            self.shelf.sleep(key, _FULL)
        logger.info("memory is full: %d versions sleep that were not tried", len(untried))
        self.settle()

    def _states(self, wanted: set[Key]) -> dict[Key, VersionStatus]:
        """What every version is doing, now that it is known who is wanted in memory."""
        quarantined, states = self.care.crashes.quarantined, {}
        for key, version in self.published.items():
            status = self.status(key)
            if version.build_id in quarantined:
                reason = quarantined[version.build_id].reason
                status = VersionStatus(state=VersionState.QUARANTINED, reason=reason)
            elif key not in wanted:
                status = VersionStatus(state=VersionState.UNLOADED, reason=self.shelf.reason(key))
            elif status.state in (VersionState.UNLOADED, VersionState.QUARANTINED):
                status = VersionStatus(state=VersionState.LOADING)
            states[key] = status
        return states

    def _kept(self) -> list[Key]:
        """Whom to keep in memory, called for or not."""
        quarantined = self.care.crashes.quarantined
        answering = {model: int(deployment.version) for model, deployment in self.answering.items()}
        published = [
            version
            for version in self.published.values()
            if version.build_id not in quarantined and not self.shelf.is_put_away(version.model)
        ]
        return residency.wanted(
            published, answering, lambda key: self.status(key).state is VersionState.FAILED
        )

    def _show(self, version: Version, deployment: Deployment, *, below_contract: bool) -> None:
        """Has the metrics and the log tell of a version that answers now."""
        number, batcher = deployment.version, deployment.batcher
        self._metrics.watch(
            version.model,
            number,
            queue_rows=lambda: batcher.queue_rows,
            inflight=lambda: batcher.inflight_requests,
        )
        self._metrics.quality(
            version.model,
            number,
            sqnr_db=version.summary.get("sqnr_db"),
            speedup=version.summary.get("speedup"),
            below_contract=below_contract,
        )
        logger.info(
            "version %s of %s answers in %s",
            number,
            version.model,
            deployment.precision,
            extra=concerned((version.model, version.number)),
        )

    def _unload(self, key: Key) -> None:
        """Takes a deployment out of the routes; it answers what it has admitted and closes."""
        deployment = self.loaded.pop(key)
        if self.answering.get(deployment.model) is deployment:
            del self.answering[deployment.model]
        self._metrics.forget(deployment.model, deployment.version)
        task = asyncio.get_running_loop().create_task(deployment.close())
        self._closing[task] = deployment
        task.add_done_callback(self._closing.pop)
        logger.info("version %d of %s is unloaded", key[1], key[0], extra=concerned(key))


def concerned(key: Key) -> dict[str, str]:
    """Whom a log line is about."""
    return {"model": key[0], "version": str(key[1])}


def _below_contract(version: Version) -> str | None:
    """In what the version misses its contract; None where it was not published below it."""
    if version.summary.get("verdict") != Verdict.BELOW_CONTRACT:
        return None
    return str(version.summary["reason"])
