"""Keeps a server's inventory: follows the catalog, loads what is wanted, lets idle versions go, tries bad engines."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine

from service.batching.device import Device
from service.catalog.catalog import Catalog, Version
from service.catalog.following import versions_beside
from service.errors import UnavailableError
from service.monitoring.metrics import Metrics
from service.processes.daemon_threads import in_daemon_thread
from service.serving import residency
from service.serving.deployment import Deployment
from service.serving.inventory import Inventory, concerned
from service.serving.loading import Loaded, subject_of
from service.serving.residency import Key

logger = logging.getLogger(__name__)

# On a GPU the copies of one batch overlap the computing of another; a third would only wait.
_GPU_LANES = 2
# Of the time between two looks: how old the answer to somebody else's may be.
_LOOKS_SHARED = 1.5
# Between two trials of an engine that failed on requests.
_PROBE_EVERY_S = 1.0


class Caretaker:
    """Works in tasks of its own, from `start` to `close`."""

    def __init__(
        self,
        inventory: Inventory,
        *,
        catalog: Catalog,
        metrics: Metrics,
        load: Callable[[Version], Loaded],
        poll_s: float,
    ) -> None:
        """`load` gives a warm engine of a version; it is called in a thread, one version at a time."""
        self._inventory = inventory
        self._catalog = catalog
        self._metrics = metrics
        self._load = load
        self._poll_s = poll_s
        # What the engines of all versions share: the processors, and the GPU, where copies overlap computing.
        self._processors = Device(inventory.care.lanes)
        self._gpu = Device(_GPU_LANES)
        self._revision: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Versions whose engines are being tried, or were a moment ago.
        self._probed: set[Key] = set()
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Begins."""
        self._loop = asyncio.get_running_loop()
        for work in (self._follow(), self._load_wanted()):
            self._spawn(work)

    async def close(self) -> None:
        """Ends. A load that goes on in its thread is left to itself. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        """Looks at the catalog again and again, and at who is idle."""
        away = False
        while True:
            try:
                # The keys are followed as often: one look is enough for both, wherever the other one falls.
                within_s = _LOOKS_SHARED * self._poll_s
                revision = await asyncio.to_thread(self._catalog.revision, within_s=within_s)
                if revision != self._revision:
                    known = list(self._inventory.published.values())
                    self._inventory.publish(await asyncio.to_thread(versions_beside, self._catalog, known))
                    self._revision = revision
                away = False
            except UnavailableError as error:
                if not away:
                    logger.warning("%s What is loaded goes on answering.", error)
                away = True
            except Exception:
                logger.exception("the catalog could not be read; what is loaded goes on answering")
            inventory = self._inventory
            idle = residency.idle(inventory.residents(), inventory.care.memory, time.monotonic())
            for key, idle_s in idle.items():
                inventory.sleep(key, f"nobody used it for {idle_s:g} s; the next request loads it")
            # The wait of one that failed may be over.
            inventory.changed.set()
            await asyncio.sleep(self._poll_s)

    async def _load_wanted(self) -> None:
        """Loads what is wanted and not there, one version at a time.

        Two at a time could hang: of threads that run the first batches of a process at the same time, one holds the
        interpreter's lock while it waits for OpenVINO's module to be set up, and the other sets it up (seen with
        2026.4).
        """
        while True:
            version = self._inventory.next_to_load()
            if version is None:
                await self._inventory.changed.wait()
                self._inventory.changed.clear()
            elif self._inventory.make_room(version):
                await self._try_to_load(version)

    async def _try_to_load(self, version: Version) -> None:
        key = (version.model, version.number)
        try:
            loaded = await in_daemon_thread(functools.partial(self._load, version), name="octet-load")
        except Exception as error:
            # Whatever stops one version must not stop the others.
            logger.exception("version %d of %s could not be loaded", key[1], key[0], extra=concerned(key))
            self._inventory.note_failure(key, str(error))
            return
        deployment = Deployment.of(
            version,
            loaded,
            flight=self._inventory.care.recorder.entry(subject_of(version)),
            metrics=self._metrics,
            device=self._gpu if loaded.engine.on_gpu else self._processors,
            failed=lambda: self._report(deployment),
        )
        self._inventory.install(version, deployment, loaded.refusal)

    def _report(self, deployment: Deployment) -> None:
        """In an engine's thread, after a batch that it failed on."""
        self._loop.call_soon_threadsafe(self._suspect, deployment)

    def _suspect(self, deployment: Deployment) -> None:
        """An engine has failed on a batch: has it tried, unless it has just been."""
        key = (deployment.model, int(deployment.version))
        if key not in self._probed and self._inventory.loaded.get(key) is deployment:
            self._probed.add(key)
            self._spawn(self._probe(key, deployment))

    async def _probe(self, key: Key, deployment: Deployment) -> None:
        """Takes a version out where its engine fails on what it is proven to answer."""
        try:
            error = await deployment.keeps_failing()
            if error is not None and self._inventory.loaded.get(key) is deployment:
                logger.error("version %d of %s keeps failing", key[1], key[0], extra=concerned(key))
                self._inventory.note_failure(
                    key, f"its engine keeps failing, on a row of its proof too ({str(error).rstrip('.')})"
                )
            await asyncio.sleep(_PROBE_EVERY_S)
        finally:
            self._probed.discard(key)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
