"""Which versions have an engine in memory, and which of them answers.

The catalog says what is published; this follows it and loads what `service.residency` wants, one version at
a time. A new default takes over only once its engine is warm: until then, and if it fails to load, the
earlier one goes on answering. An engine that is not wanted any more finishes its requests and is closed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from engines.report import Verdict
from service.batcher import Batcher
from service.catalog import Catalog, Version
from service.deployment import Deployment
from service.device import Device
from service.errors import NotFoundError, NotReadyError
from service.loading import Loaded
from service.metrics import Metrics
from service.residency import Key, VersionState, VersionStatus, wanted

logger = logging.getLogger(__name__)

POLL_S = 0.5
# After the first failure to load a version; doubled with each further one.
RETRY_S = 30.0
_LONGEST_RETRY_S = 600.0
_PUT_AWAY = "it was unloaded on request; POST /v2/repository/models/{name}/load brings it back"


@dataclass(frozen=True, kw_only=True)
class _Failure:
    attempts: int
    # On time.monotonic.
    retry_at_s: float


class Deployments:
    """The versions that this server serves. Lives in one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        metrics: Metrics,
        load: Callable[[Version], Loaded],
        poll_s: float = POLL_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """`load` gives a warm engine of a version; it is called in a thread, one version at a time."""
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._catalog = catalog
        self._metrics = metrics
        self._load = load
        # What the engines of all versions share.
        self._device = Device()
        self._revision: int | None = None
        self._published: dict[Key, Version] = {}
        self._status: dict[Key, VersionStatus] = {}
        self._failures: dict[Key, _Failure] = {}
        self._loaded: dict[Key, Deployment] = {}
        self._answering: dict[str, Deployment] = {}
        # Models that someone had unloaded here, until someone has them loaded again or the server ends.
        self._put_away: set[str] = set()
        # Defaults of the first look at the catalog that have not been tried yet.
        self._first: set[Key] | None = None
        self._retiring = False
        self._changed = asyncio.Event()
        # Set and replaced whenever a state may have changed.
        self._settled = asyncio.Event()
        self._following: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        metrics.watch_loaded(lambda: len(self._loaded))

    @property
    def ready(self) -> bool:
        """Whether this server should get requests: the defaults that it found at its start were tried once.

        Neither a model published later nor one that fails to load changes it.
        """
        return self._first is not None and not self._first and not self._retiring

    @property
    def retiring(self) -> bool:
        """Whether this server is about to stop: answers without an end should end now."""
        return self._retiring

    async def start(self) -> None:
        """Begins to follow the catalog."""
        loop = asyncio.get_running_loop()
        self._following = [loop.create_task(self._follow()), loop.create_task(self._load_wanted())]

    def retire(self) -> None:
        """Says that this server is about to stop: it is not ready any more, but answers."""
        self._retiring = True

    async def close(self) -> None:
        """Stops following, answers what was admitted and closes every engine. Idempotent."""
        self.retire()
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for key in list(self._loaded):
            self._unload(key)
        await asyncio.gather(*self._closing)

    def find(self, model: str, version: str | None = None) -> Deployment:
        """The deployment that answers for a version, or for the model's default where none is named.

        Raises:
            NotFoundError: no such model or version.
            NotReadyError: it exists, but no engine of it may answer now.
        """
        deployment = (
            self._answering.get(model) if version is None else self._loaded.get((model, _number(version)))
        )
        return deployment if deployment is not None else self._missing(model, version)

    def ready_versions(self, model: str) -> list[str]:
        """Numbers of the versions of a model that answer, rising."""
        return [str(number) for name, number in sorted(self._loaded) if name == model]

    def status(self, model: str, number: int) -> VersionStatus:
        """What a published version is doing in this server."""
        return self._status.get((model, number), VersionStatus(state=VersionState.UNLOADED))

    def deployments(self, model: str | None = None) -> list[Deployment]:
        """Everything that has an engine in memory, or that of one model, by model and number."""
        return [self._loaded[key] for key in sorted(self._loaded) if model in (None, key[0])]

    def loaded(self, model: str, number: int) -> Deployment | None:
        """The deployment of a version, if it has an engine in memory."""
        return self._loaded.get((model, number))

    def put_away(self, model: str) -> None:
        """Unloads a model; it stays so in this server until `bring_back`.

        Raises:
            NotFoundError: no such model.
        """
        self._default_of(model)
        self._put_away.add(model)
        self._settle()

    async def bring_back(self, model: str) -> None:
        """Loads a model's default now, whatever became of earlier attempts, and returns once it answers.

        Raises:
            NotFoundError: no such model.
            NotReadyError: it could not be loaded; the message says why.
        """
        key = (model, self._default_of(model))
        self._put_away.discard(model)
        if self._has_failed(key):
            self._failures.pop(key, None)
            self._status[key] = VersionStatus(state=VersionState.LOADING)
        self._settle()
        self._changed.set()
        while self._is_loading(key):
            await self._settled.wait()
        self.find(model)

    def _default_of(self, model: str) -> int:
        numbers = sorted(number for name, number in self._published if name == model)
        if not numbers:
            raise NotFoundError(f"there is no model '{model[:80]}'; GET /v1/models lists all.")
        return next((number for number in numbers if self._published[model, number].default), numbers[-1])

    def _missing(self, model: str, version: str | None) -> Deployment:
        """Raises the error that says why nothing answers."""
        if self._first is None:
            raise NotReadyError("the server has just started and does not know its models yet; try again.")
        number = self._default_of(model)
        if version is not None and (model, number := _number(version)) not in self._published:
            known = ", ".join(str(known) for name, known in sorted(self._published) if name == model)
            raise NotFoundError(f"model '{model}' has no version '{version[:80]}'; it has {known}.")
        status = self.status(model, number)
        why = f": {status.reason}" if status.reason else ""
        raise NotReadyError(f"version {number} of model '{model}' is {status.state}{why}; try again later.")

    async def _follow(self) -> None:
        """Looks at the catalog again and again."""
        while True:
            try:
                revision = await asyncio.to_thread(self._catalog.revision)
                if revision != self._revision:
                    self._publish(await asyncio.to_thread(self._catalog.versions))
                    self._revision = revision
            except Exception:
                logger.exception("the catalog could not be read; what is loaded goes on answering")
            if any(failure.retry_at_s <= time.monotonic() for failure in self._failures.values()):
                self._changed.set()
            await asyncio.sleep(self._poll_s)

    def _publish(self, versions: list[Version]) -> None:
        """Takes over what the catalog says."""
        self._published = {(version.model, version.number): version for version in versions}
        if self._first is None:
            self._first = {key for key, version in self._published.items() if version.default}
        self._settle()
        self._changed.set()

    def _settle(self) -> None:
        """Brings routes, memory and states in line with what is published and loaded."""
        for key, version in self._published.items():
            if version.default and key in self._loaded:
                self._answering[version.model] = self._loaded[key]
        wanted = set(self._wanted())
        for key in self._loaded.keys() - wanted:
            self._unload(key)
        kept = self._published.keys() | self._loaded.keys()
        self._metrics.retain({(model, str(number)) for model, number in kept})
        for key in self._status.keys() - self._published.keys():
            del self._status[key]
            self._failures.pop(key, None)
        for key in self._published:
            if key not in wanted:
                reason = _PUT_AWAY if key[0] in self._put_away else None
                self._status[key] = VersionStatus(state=VersionState.UNLOADED, reason=reason)
            elif self.status(*key).state is VersionState.UNLOADED:
                self._status[key] = VersionStatus(state=VersionState.LOADING)
        if self._first is not None:
            self._first = {key for key in self._first & self._published.keys() if self._is_loading(key)}
        self._settled.set()
        self._settled = asyncio.Event()

    def _wanted(self) -> list[Key]:
        answering = {model: int(deployment.version) for model, deployment in self._answering.items()}
        published = [version for key, version in self._published.items() if key[0] not in self._put_away]
        return wanted(published, answering, self._has_failed)

    def _is_loading(self, key: Key) -> bool:
        return self.status(*key).state is VersionState.LOADING

    def _has_failed(self, key: Key) -> bool:
        return self.status(*key).state is VersionState.FAILED

    async def _load_wanted(self) -> None:
        """Loads what is wanted and not there, one version at a time."""
        while True:
            key = next((key for key in self._wanted() if self._due(key)), None)
            if key is None:
                await self._changed.wait()
                self._changed.clear()
            else:
                await self._try_to_load(self._published[key])

    def _due(self, key: Key) -> bool:
        failure = self._failures.get(key)
        waited = failure is None or failure.retry_at_s <= time.monotonic()
        return key not in self._loaded and key in self._published and waited

    async def _try_to_load(self, version: Version) -> None:
        key = (version.model, version.number)
        try:
            loaded = await asyncio.to_thread(self._load, version)
        except Exception as error:  # noqa: BLE001 - whatever stops one version must not stop the others
            self._note_failure(key, error)
        else:
            self._failures.pop(key, None)
            self._install(version, loaded)
        self._settle()

    def _note_failure(self, key: Key, error: Exception) -> None:
        attempts = self._failures[key].attempts + 1 if key in self._failures else 1
        wait_s = min(self._retry_s * 2 ** (attempts - 1), _LONGEST_RETRY_S)
        logger.error(
            "version %d of %s could not be loaded", key[1], key[0], exc_info=error, extra=_concerned(*key)
        )
        self._failures[key] = _Failure(attempts=attempts, retry_at_s=time.monotonic() + wait_s)
        self._status[key] = VersionStatus(state=VersionState.FAILED, reason=str(error))

    def _install(self, version: Version, loaded: Loaded) -> None:
        """Puts a warm engine where requests find it."""
        key, number = (version.model, version.number), str(version.number)
        metrics = self._metrics.of(version.model, number)
        batcher = Batcher(
            loaded.engine,
            limits=version.options.batching,
            rules=loaded.rules,
            metrics=metrics,
            device=self._device,
        )
        batcher.start()
        self._loaded[key] = Deployment(
            model=version.model,
            version=number,
            signature=loaded.signature,
            precision=loaded.precision,
            batcher=batcher,
            limits=version.options.batching,
            rules=loaded.rules,
            metrics=metrics,
        )
        self._metrics.watch(
            version.model,
            number,
            queue_rows=lambda: batcher.queue_rows,
            inflight=lambda: batcher.inflight_requests,
        )
        below_contract = None if loaded.refusal else _below_contract(version)
        self._metrics.quality(
            version.model,
            number,
            sqnr_db=version.summary.get("sqnr_db"),
            speedup=version.summary.get("speedup"),
            below_contract=below_contract is not None,
        )
        self._status[key] = VersionStatus(
            state=VersionState.REFUSED if loaded.refusal else VersionState.READY,
            precision=loaded.precision,
            reason=loaded.refusal or below_contract,
        )
        logger.info(
            "version %s of %s answers in %s", number, version.model, loaded.precision, extra=_concerned(*key)
        )

    def _unload(self, key: Key) -> None:
        """Takes a deployment out of the routes; its batcher answers what it has admitted and closes."""
        deployment = self._loaded.pop(key)
        if self._answering.get(deployment.model) is deployment:
            del self._answering[deployment.model]
        self._metrics.forget(deployment.model, deployment.version)
        task = asyncio.get_running_loop().create_task(deployment.batcher.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        logger.info("version %d of %s is unloaded", key[1], key[0], extra=_concerned(*key))


def _concerned(model: str, number: int) -> dict[str, str]:
    """Whom a log line is about."""
    return {"model": model, "version": str(number)}


def _number(version: str) -> int:
    """The number that a client means, or -1, which no version has."""
    # No version was ever longer, and Python refuses to read numbers without end.
    return int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else -1


def _below_contract(version: Version) -> str | None:
    """In what the version misses its contract; None where it was not published below it."""
    if version.summary.get("verdict") != Verdict.BELOW_CONTRACT:
        return None
    return str(version.summary["reason"])
