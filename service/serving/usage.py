"""Notes which versions and engines this server uses, so that no sweep takes them for forgotten."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence

from engines import hardware_key
from service.catalog.catalog import Version
from service.catalog.retention import Retention
from service.errors import StorageFullError, UnavailableError
from service.retention.engine_uses import EngineUses
from service.serving.deployments import Deployments

logger = logging.getLogger(__name__)

NOTE_S = 300.0
"""Far less than anything is kept."""


class Usage:
    """What a server says of itself in the catalog, and by the times of its cached engines."""

    def __init__(self, deployments: Deployments, retention: Retention, uses: EngineUses) -> None:
        self._deployments = deployments
        self._retention = retention
        self._uses = uses
        # Requests that were answered until then are noted; on time.monotonic.
        self._noted_s = float("-inf")

    async def keep_noting(self) -> None:
        """Notes it again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(NOTE_S)
            try:
                await self.note()
            except (UnavailableError, StorageFullError) as error:
                logger.warning("%s Nobody learns yet which versions are used here.", error)
            except Exception:
                logger.exception("the use of versions could not be noted")

    async def note(self) -> None:
        """Notes it once.

        Raises:
            CatalogUnavailableError: the database does not answer.
            StorageFullError: it has no room.
        """
        now_s = time.monotonic()
        loaded = self._deployments.in_memory()
        used = [version for version, used_s in loaded if used_s > self._noted_s]
        await asyncio.to_thread(self._write, [version for version, _ in loaded], used)
        self._noted_s = now_s

    def _write(self, loaded: Sequence[Version], used: Sequence[Version]) -> None:
        self._touch({version.build_id for version in loaded})
        if loaded:
            self._retention.note_use(
                [(version.model, version.number) for version in used],
                [((version.model, version.number), hardware_key(version.options)) for version in loaded],
            )

    def _touch(self, build_ids: set[str]) -> None:
        for entry in self._uses.of(build_ids):
            with contextlib.suppress(OSError):
                os.utime(entry)
