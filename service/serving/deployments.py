"""Which versions have an engine in memory, and which of them answers: what requests see of it.

The catalog says what is published; a caretaker follows it and loads what `service.serving.residency` wants. A new
default takes over only once its engine is warm: until then, and if it fails to load, the earlier one goes on
answering. An engine that is not wanted any more finishes its requests and is closed. A version that is not in memory
is loaded by the request that needs it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

from engines.options import Batching
from service.catalog.catalog import Catalog, Version
from service.errors import NotReadyError, QueueFullError, StoppingError
from service.monitoring.metrics import Metrics
from service.serving.caretaker import Caretaker
from service.serving.deployment import Deployment
from service.serving.inventory import Care, Inventory
from service.serving.loading import Loaded
from service.serving.published import number_of
from service.serving.residency import Key, VersionState, VersionStatus

POLL_S = 0.5
# After the first failure of a version; doubled with each further one.
RETRY_S = 30.0
# How long a request waits for the first look at the catalog.
_FIRST_LOOK_S = 30.0


class Deployments:
    """The versions that this server serves. Lives in one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        metrics: Metrics,
        load: Callable[[Version], Loaded],
        care: Care,
        poll_s: float = POLL_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """`load` gives a warm engine of a version; it is called in a thread, one version at a time."""
        self._inventory = Inventory(metrics=metrics, care=care, retry_s=retry_s)
        self._caretaker = Caretaker(
            self._inventory, catalog=catalog, metrics=metrics, load=load, poll_s=poll_s
        )
        # Requests that wait for a version to be loaded.
        self._waiting: Counter[Key] = Counter()
        self._retiring = False

    @property
    def ready(self) -> bool:
        """Whether this server should get requests: the defaults that it found at its start were tried once.

        Neither a model published later nor one that fails to load changes it.
        """
        return self._inventory.first is not None and not self._inventory.first and not self._retiring

    @property
    def retiring(self) -> bool:
        """Whether this server is about to stop: it admits nothing, and answers without an end should end now."""
        return self._retiring

    @property
    def inflight_requests(self) -> int:
        """Requests admitted by any version, also one that has been unloaded since, and not yet answered."""
        return self._inventory.inflight_requests

    async def start(self) -> None:
        """Begins to follow the catalog."""
        self._caretaker.start()

    def retire(self) -> None:
        """Says that this server is about to stop: it is not ready any more, but answers what it has admitted."""
        self._retiring = True
        self._inventory.tell()

    async def close(self) -> None:
        """Stops following, answers what was admitted and closes every engine. Idempotent."""
        self.retire()
        await self._caretaker.close()
        await self._inventory.close()

    def admit(self) -> None:
        """Whether new requests are let in.

        Raises:
            StoppingError: the server is about to stop.
        """
        if self._retiring:
            raise StoppingError(
                "the server is about to stop; send the request again, to another server or later."
            )

    def get(self, model: str, version: str | None = None) -> Deployment | None:
        """The deployment that answers for a version, or for the default where none is named; None where none does."""
        if version is None:
            return self._inventory.answering.get(model)
        return self._inventory.loaded.get((model, number_of(version)))

    def find(self, model: str, version: str | None = None) -> Deployment:
        """As `get`, but with the reason where nothing answers.

        Raises:
            NotFoundError: no such model or version.
            NotReadyError: it exists, but no engine of it may answer now.
        """
        return self.get(model, version) or self._missing(model, version)

    async def obtain(self, model: str, version: str | None = None) -> Deployment:
        """As `find`, but waits for a version that is about to be loaded, and has one loaded that is not in memory.

        It waits for as long as a request of that version may wait for its answer.

        Raises:
            NotFoundError: no such model or version.
            NotReadyError: it was not loaded in time, or will not be.
            QueueFullError: as many requests wait for it as may.
            StoppingError: the server is about to stop.
        """
        started_s = time.monotonic()
        while (deployment := self.get(model, version)) is None:
            longest_s, key, room = self._call(model, version)
            left_s = started_s + longest_s - time.monotonic()
            if left_s <= 0:
                self._missing(model, version)
            if self._waiting[key] >= room:
                raise QueueFullError(
                    f"{room} requests wait for model '{model}' to be loaded, and no more may; "
                    "send the request again later."
                )
            self._waiting[key] += 1
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._inventory.settled.wait(), left_s)
            finally:
                self._waiting[key] -= 1
        return deployment

    def promised(self, model: str, version: str | None = None) -> str:
        """Number of the version that would answer a request now, if need be after it was loaded for it.

        Raises:
            NotFoundError: no such model or version.
            NotReadyError: none would.
        """
        deployment = self.get(model, version)
        if deployment is not None:
            return deployment.version
        if self._inventory.first is not None:
            found = self._inventory.published.named(model, version)
            if self._sleeps((model, found.number)):
                return str(found.number)
        return self._missing(model, version).version

    def ready_versions(self, model: str) -> list[str]:
        """Numbers of the versions of a model that answer, rising."""
        return [str(number) for name, number in sorted(self._inventory.loaded) if name == model]

    def status(self, model: str, number: int) -> VersionStatus:
        """What a published version is doing in this server."""
        return self._inventory.status((model, number))

    def statuses(self) -> dict[Key, VersionStatus]:
        """What every published version is doing in this server."""
        return {key: self._inventory.status(key) for key in self._inventory.published}

    def deployments(self, model: str | None = None) -> list[Deployment]:
        """Everything that has an engine in memory, or that of one model, by model and number."""
        loaded = self._inventory.loaded
        return [loaded[key] for key in sorted(loaded) if model in (None, key[0])]

    def in_memory(self) -> list[tuple[Version, float]]:
        """The published versions that have an engine in memory, each with when it last ran, on time.monotonic."""
        inventory = self._inventory
        return [
            (inventory.published[key], deployment.engine.used_s)
            for key, deployment in inventory.loaded.items()
            if key in inventory.published
        ]

    def loaded(self, model: str, number: int) -> Deployment | None:
        """The deployment of a version, if it has an engine in memory."""
        return self._inventory.loaded.get((model, number))

    def put_away(self, model: str) -> None:
        """Unloads a model; it stays so in this server until `bring_back`.

        Raises:
            NotFoundError: no such model.
        """
        self._inventory.published.of_model(model)
        self._inventory.shelf.put_away(model)
        self._inventory.settle()

    async def bring_back(self, model: str) -> None:
        """Loads a model's default now, whatever became of earlier attempts, and returns once it answers.

        A quarantine of any of its versions is lifted.

        Raises:
            NotFoundError: no such model.
            NotReadyError: it could not be loaded; the message says why.
        """
        inventory = self._inventory
        inventory.care.crashes.forgive([known.build_id for known in inventory.published.of_model(model)])
        inventory.shelf.bring_back(model)
        key = (model, inventory.published.named(model, None).number)
        inventory.retry(key)
        while inventory.is_loading(key) and not self._retiring:
            await inventory.settled.wait()
        self.find(model)

    def _call(self, model: str, version: str | None) -> tuple[float, Key, int]:
        """Has a version loaded; how long a request may wait for that, with which others, and with how many.

        Raises:
            NotFoundError: no such model or version.
            NotReadyError: there is nothing to wait for.
            StoppingError: the server is about to stop.
        """
        inventory = self._inventory
        self.admit()
        if inventory.first is None:
            return _FIRST_LOOK_S, (model, 0), Batching().max_queue_rows
        found = inventory.published.named(model, version)
        key, limits = (model, found.number), found.options.batching
        if not inventory.is_loading(key) and not self._sleeps(key):
            self._missing(model, version)
        if inventory.shelf.call(key):
            inventory.settle()
        return limits.timeout_ms / 1e3, key, limits.max_queue_rows

    def _sleeps(self, key: Key) -> bool:
        """Whether a version is out of memory and a request has it loaded."""
        unloaded = self._inventory.status(key).state is VersionState.UNLOADED
        return unloaded and not self._inventory.shelf.is_put_away(key[0])

    def _missing(self, model: str, version: str | None) -> Deployment:
        """Raises the error that says why nothing answers."""
        if self._inventory.first is None:
            raise NotReadyError("the server has just started and does not know its models yet; try again.")
        number = self._inventory.published.named(model, version).number
        status = self.status(model, number)
        why = f": {status.reason}" if status.reason else ""
        raise NotReadyError(f"version {number} of model '{model}' is {status.state}{why}; try again later.")
