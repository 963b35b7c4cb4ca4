"""Engines that one server of the fleet compiles and the others of its hardware read.

Whoever loads a version on hardware where nobody has compiled it yet does it, once for all: the others wait, and then
take its files from the store into their own caches. Each replays the proof all the same.
"""

import contextlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engines.errors import EngineError, InvalidArtifactError
from service.catalog.catalog import Version
from service.catalog.engine_states import HOLD_S, EngineStates
from service.catalog.holds import Holds
from service.catalog.records import EngineState, EngineStatus
from service.errors import CancelledBuildError, StorageFullError, UnavailableError
from service.storage.blobs import BlobStore, digest_of

logger = logging.getLogger(__name__)

_POLL_S = 0.5


@dataclass(kw_only=True)
class Compilation:
    """What a server finds out while it loads a version; whoever compiles for all fills it in."""

    # Whether this server compiles for all: then it has to load the version in full.
    ours: bool
    # Paths in the cache of the engines that were used.
    entries: list[str] = field(default_factory=list)
    # Why FP32 answers here instead.
    refusal: str | None = None


class EngineExchange:
    """One server's part in it."""

    def __init__(
        self, states: EngineStates, holds: Holds, store: BlobStore, cache: Path, *, shared: bool
    ) -> None:
        """`cache` is the folder of this server's engines; only where it is `shared` do they go to the store."""
        self._states = states
        self._holds = holds
        self._store = store
        self._cache = cache
        self._shared = shared
        self._holder = uuid.uuid4().hex

    @contextlib.contextmanager
    def compilation(
        self, version: Version, hardware: str, cancelled: Callable[[], bool]
    ) -> Iterator[Compilation]:
        """Inside of the block the version is loaded: with the engines of others, or for them.

        Without a database a server compiles for itself alone.

        Raises:
            CancelledBuildError: `cancelled` became true while another server was waited for.
        """
        try:
            found = self._wait_for_turn(version, hardware, cancelled)
        except (UnavailableError, StorageFullError) as error:
            logger.warning("%s Engines are not shared until then.", error)
            yield Compilation(ours=False)
            return
        if found is not None:
            self._fetch(found)
            yield Compilation(ours=False)
            return
        compilation = Compilation(ours=True)
        done = threading.Event()
        keeping = threading.Thread(target=self._keep, args=(version, hardware, done), daemon=True)
        keeping.start()
        try:
            yield compilation
        except EngineError as error:
            done.set()
            self._settle(version, hardware, Compilation(ours=True, refusal=str(error)))
            raise
        except BaseException:
            done.set()
            with contextlib.suppress(UnavailableError):
                self._states.drop(version, hardware, self._holder)
            raise
        done.set()
        self._settle(version, hardware, compilation)

    def _wait_for_turn(
        self, version: Version, hardware: str, cancelled: Callable[[], bool]
    ) -> EngineStatus | None:
        while True:
            found = self._states.hold(version, hardware, self._holder)
            if found is None or found.state is not EngineState.COMPILING:
                return found
            if cancelled():
                raise CancelledBuildError("the server stops.")
            time.sleep(_POLL_S)

    def _fetch(self, found: EngineStatus) -> None:
        """Brings the engines into the cache; one that is missing there only costs the time to compile it."""
        files = {name: digest for name, digest in found.files.items() if not (self._cache / name).exists()}
        incoming = self._cache / f".incoming-{uuid.uuid4().hex}"
        try:
            self._store.materialise(files, incoming)
            for name in files:
                (self._cache / name).parent.mkdir(parents=True, exist_ok=True)
                (incoming / name).replace(self._cache / name)
        except (UnavailableError, StorageFullError, InvalidArtifactError, OSError) as error:
            logger.warning("an engine could not be taken from the store (%s); it is compiled here", error)
        shutil.rmtree(incoming, ignore_errors=True)

    def _keep(self, version: Version, hardware: str, done: threading.Event) -> None:
        while not done.wait(HOLD_S / 6):
            with contextlib.suppress(UnavailableError, StorageFullError):
                self._states.keep(version, hardware, self._holder)

    def _settle(self, version: Version, hardware: str, compilation: Compilation) -> None:
        """Tells the others. A database or a store that is away only costs them the time to compile it."""
        state = EngineState.VERIFIED if compilation.refusal is None else EngineState.REFUSED
        try:
            entries = compilation.entries if self._shared else []
            files = {name: digest_of(self._cache / name) for name in entries}
            with self._holds.hold(files.values()):
                for name in files:
                    self._store.put(self._cache / name)
                status = EngineStatus(hardware=hardware, state=state, reason=compilation.refusal, files=files)
                self._states.settle(version, status, self._holder)
        except (UnavailableError, StorageFullError, OSError) as error:
            logger.warning("an engine could not be shared (%s)", error)
            with contextlib.suppress(UnavailableError, StorageFullError):
                self._states.drop(version, hardware, self._holder)
