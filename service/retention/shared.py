"""Rules for what all machines share: rows of the catalog, and blobs in the store."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from engines.errors import InvalidArtifactError
from service.access.audit import Action, swept
from service.builds.crashpoints import reached
from service.catalog.catalog import Catalog
from service.catalog.retention import DueSamples, Key, Retention
from service.errors import ConflictError, NotFoundError
from service.retention.rules import Beat, Removal, Rule
from service.settings import Settings
from service.storage.blobs import BlobStore, StoredBlob

REMOVED_AT_ONCE = 500
"""Whoever wants to write to the catalog waits while they go; S3 takes them in one request."""
EVER = float("inf")


def shared_rules(settings: Settings, catalog: Catalog, store: BlobStore) -> Sequence[Rule]:
    """The rules, in their order: what rows let go of is then named by nothing, and leaves the store last."""
    retention = Retention(catalog)
    versions = (
        [] if settings.keep_versions is None else [OldVersions(settings, catalog, settings.keep_versions)]
    )
    return (
        EndedSamples(retention, store, keep_s=settings.keep_samples_s),
        FruitlessBuilds(retention, keep_s=settings.keep_failed_builds_s),
        *versions,
        StoredEngines(retention, keep_s=settings.keep_engines_s),
        UnnamedBlobs(retention, store, keep_s=settings.keep_unnamed_s),
    )


class EndedSamples(Rule):
    """Samples of builds that ended long ago, or whose uploader wants them gone at once."""

    what = "builds' samples"

    def __init__(self, retention: Retention, store: BlobStore, *, keep_s: float = EVER) -> None:
        """`keep_s` is for those of which nobody asked for anything."""
        self._retention = retention
        self._store = store
        self._keep_s = keep_s

    def due(self) -> Removal:
        count, digests = self._retention.samples_due(self._due())
        return Removal(count=count, size_bytes=sum(map(self._size_bytes, digests)))

    def apply(self, beat: Beat) -> Removal:
        due, count, gone = self._due(), 0, set[str]()
        builds_due, digests_due = self._retention.samples_due(due)
        if not builds_due:
            # Nobody has to wait for a turn of which nothing comes.
            return Removal()
        # Asked for beforehand, where nobody waits for a slow store.
        sizes_bytes = {digest: self._size_bytes(digest) for digest in digests_due}

        def remove(digests: Collection[str]) -> None:
            self._store.delete(digests)
            gone.update(digests)

        while builds := self._retention.remove_samples(due, remove):
            count += builds
            beat()
        return Removal(count=count, size_bytes=sum(sizes_bytes.get(digest, 0) for digest in gone))

    def _due(self) -> DueSamples:
        return DueSamples(ended_before=time.time() - self._keep_s)

    def _size_bytes(self, digest: str) -> int:
        try:
            return self._store.size_bytes(digest)
        except InvalidArtifactError:
            # A sweep that was cut off had removed it.
            return 0


class FruitlessBuilds(Rule):
    """Builds without a version."""

    what = "builds without a version"

    def __init__(self, retention: Retention, *, keep_s: float) -> None:
        self._retention = retention
        self._keep_s = keep_s

    def due(self) -> Removal:
        return Removal(count=len(self._retention.builds_due(time.time() - self._keep_s)))

    def apply(self, beat: Beat) -> Removal:
        beat()
        dropped = self._retention.drop_builds(time.time() - self._keep_s)
        for build_id in dropped:
            swept(Action.FORGET, build=build_id)
        return Removal(count=len(dropped))


class OldVersions(Rule):
    """Versions that are old, many, and asked for by nobody."""

    what = "versions"

    def __init__(self, settings: Settings, catalog: Catalog, keep: int) -> None:
        self._catalog = catalog
        self._retention = Retention(catalog)
        self._keep = keep
        self._keep_s = settings.keep_versions_s

    def due(self) -> Removal:
        return Removal(count=len(self._due()))

    def apply(self, beat: Beat) -> Removal:
        count = 0
        for model, number in self._due():
            beat()
            try:
                self._catalog.delete_version(model, number)
            except (ConflictError, NotFoundError):
                # It was made the default meanwhile, or somebody else has deleted it.
                continue
            swept(Action.DELETE_VERSION, model=model, version=number)
            count += 1
        return Removal(count=count)

    def _due(self) -> list[Key]:
        return self._retention.versions_due(self._keep, time.time() - self._keep_s)


class StoredEngines(Rule):
    """Engines that servers shared, for hardware that is no more."""

    what = "stored engines"

    def __init__(self, retention: Retention, *, keep_s: float) -> None:
        self._retention = retention
        self._keep_s = keep_s

    def due(self) -> Removal:
        return Removal(count=len(self._retention.engines_due(time.time() - self._keep_s)))

    def apply(self, beat: Beat) -> Removal:
        beat()
        return Removal(count=len(self._retention.drop_engines(time.time() - self._keep_s)))


class UnnamedBlobs(Rule):
    """Blobs that nothing names any more, or never has."""

    what = "files in the store"

    def __init__(self, retention: Retention, store: BlobStore, *, keep_s: float) -> None:
        """`keep_s` is the age below which a blob is left alone."""
        self._retention = retention
        self._store = store
        self._keep_s = keep_s

    def due(self) -> Removal:
        return _sum(self._candidates())

    def apply(self, beat: Beat) -> Removal:
        removed = Removal()
        self._retention.forget_holds()
        candidates = self._candidates()
        while batch := list(islice(candidates, REMOVED_AT_ONCE)):
            beat()
            gone = self._retention.remove_unnamed([blob.digest for blob in batch], self._store.delete)
            if gone:
                reached("sweep.blobs_removed")
            removed += _sum(blob for blob in batch if blob.digest in gone)
        return removed

    def _candidates(self) -> Iterator[StoredBlob]:
        kept = self._retention.kept()
        return (blob for blob in self._store.blobs(older_than_s=self._keep_s) if blob.digest not in kept)


def _sum(blobs: Iterable[StoredBlob]) -> Removal:
    return sum((Removal(count=1, size_bytes=blob.size_bytes) for blob in blobs), Removal())
