"""Uploads, builds and versions of any age in a catalog and a store, for tests of what is kept."""

import time
from collections.abc import Mapping

import sqlalchemy as sa

from engines.options import BuildOptions
from service.catalog.catalog import Build, Catalog, NewBuild, Version
from service.catalog.records import EngineState, EngineStatus, Samples
from service.catalog.schema import BuildRow, EngineRow, VersionRow
from service.storage.blobs import BlobStore

MODEL, SAMPLES = "upload/model.onnx", "upload/samples-000.npz"


def stored(store: BlobStore, content: str) -> str:
    with store.writer() as writer:
        writer.write(content.encode())
        return writer.commit()


def uploaded(
    catalog: Catalog,
    store: BlobStore,
    name: str,
    *,
    samples: Samples = Samples.KEEP,
    sent: str | None = None,
    **further: str,
) -> Build:
    """A queued build of a model of its own, with the samples `sent`, its own unless said else."""
    files = {MODEL: stored(store, f"model {name}"), SAMPLES: stored(store, sent or f"samples {name}")}
    files |= {path: stored(store, content) for path, content in further.items()}
    new = NewBuild(model="m", fingerprint=name, options=BuildOptions(), files=files, samples=samples)
    return catalog.accept(new, force=True)[0]


def published(
    catalog: Catalog, store: BlobStore, build: Build, *, engine: EngineStatus | None = None
) -> Version:
    files = {MODEL: build.files[MODEL], "proof.npz": stored(store, f"proof {build.id}")}
    return catalog.publish(build.id, files=files, summary={}, engine=engine)


def engine(store: BlobStore, content: str, hardware: str = "here") -> EngineStatus:
    files = {f"{hardware}/{content}.engine": stored(store, content)}
    return EngineStatus(hardware=hardware, state=EngineState.VERIFIED, reason=None, files=files)


def age_build(catalog: Catalog, build: Build, seconds: float) -> None:
    with catalog.change() as session:
        aged = sa.update(BuildRow).where(BuildRow.id == build.id)
        session.execute(aged.values(finished_at=time.time() - seconds))


def age_version(catalog: Catalog, version: Version, seconds: float, *, used_s: float | None = None) -> None:
    """Published so long ago, and used so long ago."""
    now = time.time()
    with catalog.change() as session:
        aged = sa.update(VersionRow).where(VersionRow.number == version.number)
        used_at = None if used_s is None else now - used_s
        session.execute(aged.values(created_at=now - seconds, used_at=used_at))


def age_engines(catalog: Catalog, seconds: float) -> None:
    with catalog.change() as session:
        session.execute(sa.update(EngineRow).values(changed_at=time.time() - seconds))


def there(store: BlobStore, files: Mapping[str, str]) -> set[str]:
    """Which of the files are in the store."""
    return {name for name, digest in files.items() if store.has(digest)}
