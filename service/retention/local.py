"""Rules for what lies on this machine alone: half-written uploads and cached engines."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from service.catalog.catalog import Catalog
from service.catalog.retention import Retention
from service.retention.engine_uses import EngineUses
from service.retention.rules import Beat, Removal, Rule
from service.settings import Settings
from service.storage.blobs import BlobStore

_ENTRIES = "*/*.engine"
_HALF_WRITTEN = "*/.engine-*"


def local_rules(settings: Settings, catalog: Catalog, store: BlobStore) -> Sequence[Rule]:
    """The rules, in their order."""
    return (
        PartialUploads(store, keep_s=settings.keep_partial_uploads_s),
        CachedEngines(
            settings.engine_cache,
            EngineUses(settings.engine_uses_file, settings.engine_cache),
            Retention(catalog),
            keep_s=settings.keep_engines_s,
        ),
    )


class PartialUploads(Rule):
    """What uploads left whose process was killed, or whose machine went down."""

    what = "half-written files"

    def __init__(self, store: BlobStore, *, keep_s: float) -> None:
        self._store = store
        self._keep_s = keep_s

    def due(self) -> Removal:
        return _sizes(self._stale())

    def apply(self, beat: Beat) -> Removal:
        beat()
        return _remove(self._stale())

    def _stale(self) -> list[Path]:
        return self._store.stale(older_than_s=self._keep_s)


class CachedEngines(Rule):
    """Compiled engines that nobody used for long, and those of versions that are gone.

    Losing one never does harm: whoever needs it compiles it again. A server that has one in memory touches its file
    now and then (`service.serving.usage`).
    """

    what = "cached engines"

    def __init__(self, cache: Path, uses: EngineUses, retention: Retention, *, keep_s: float) -> None:
        self._cache = cache
        self._uses = uses
        self._retention = retention
        self._keep_s = keep_s

    def due(self) -> Removal:
        return _sizes(self._due())

    def apply(self, beat: Beat) -> Removal:
        beat()
        return _remove(self._due())

    def _due(self) -> list[Path]:
        uses = self._uses.read()
        published = self._retention.published_builds() if uses else set()
        gone = [self._cache / entry for entry, builds in uses.items() if published.isdisjoint(builds)]
        return list(dict.fromkeys([*filter(Path.exists, gone), *self._unused()]))

    def _unused(self) -> Iterator[Path]:
        horizon = time.time() - self._keep_s
        for pattern in (_ENTRIES, _HALF_WRITTEN):
            for path in self._cache.glob(pattern):
                if (stat := _stat(path)) is not None and stat.st_mtime < horizon:
                    yield path


def _sizes(paths: Iterable[Path]) -> Removal:
    found = [stat for path in paths if (stat := _stat(path)) is not None]
    return Removal(count=len(found), size_bytes=sum(stat.st_size for stat in found))


def _remove(paths: Sequence[Path]) -> Removal:
    removed = _sizes(paths)
    for path in paths:
        path.unlink(missing_ok=True)
    return removed


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        # Another process has just removed it.
        return None
