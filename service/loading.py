"""From a published version to a warm engine: fetch, rehearse in a child, load with its proof, warm up."""

import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from engines import LoadedEngine, load_engine, workspace
from engines.options import Precision
from engines.runtimes.base import Engine
from service.batch_sizes import BatchRules
from service.catalog import Version
from service.protocol import Signature
from service.sandbox import Limits, Sandbox, Watch
from service.storage import BlobStore
from service.warm_up import warm_up


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine that may answer, warm."""

    engine: Engine
    signature: Signature
    rules: BatchRules
    # What really answers.
    precision: Precision
    # Why FP32 answers instead of the 8-bit engine, where it does.
    refusal: str | None


@dataclass(frozen=True, kw_only=True)
class VersionLoader:
    """Loads versions from the store, through `folder`."""

    store: BlobStore
    # Holds the files of the version that is being loaded; emptied at start.
    folder: Path
    # Where runtimes keep compiled engines.
    cache: Path
    # Processors that an engine may use.
    threads: int
    # What a rehearsal may take.
    limits: Limits
    # Set when the server stops: a rehearsal is broken off.
    stopping: threading.Event = field(default_factory=threading.Event)

    def clear(self) -> None:
        """Removes what an earlier server left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, version: Version) -> Loaded:
        """Loads a version and runs it at every batch size that it will get.

        Raises:
            InvalidArtifactError: files are missing or changed.
            SandboxError: the rehearsal crashed, took too long or too much memory.
            CancelledBuildError: the server stops.
            EngineError: neither its 8-bit engine nor FP32 may answer.
        """
        folder = self.folder / version.build_id
        try:
            self.store.materialise(_needed(version), folder)
            self._rehearse(version, folder)
            loaded = load_engine(folder, version.options, threads=self.threads, cache=self.cache)
        finally:
            # An engine has what it needs in memory or in the cache.
            shutil.rmtree(folder, ignore_errors=True)
        try:
            return _warm(loaded, version)
        except BaseException:
            loaded.engine.close()
            raise

    def _rehearse(self, version: Version, folder: Path) -> None:
        """Loads and runs the version in a process of its own: a crash inside a library costs that one."""
        arguments = {
            "folder": str(folder),
            "options": version.options.model_dump(mode="json"),
            "threads": self.threads,
            "cache": str(self.cache),
        }
        environment = os.environ | {"OCTET_THREADS": str(self.threads)}
        with Sandbox(self.limits, environment=environment) as sandbox:
            sandbox.call(
                "load_check",
                arguments,
                what=f"loading version {version.number} of model '{version.model}'",
                watch=Watch(cancelled=self.stopping.is_set),
            )


def _warm(loaded: LoadedEngine, version: Version) -> Loaded:
    engine = loaded.engine
    return Loaded(
        engine=engine,
        signature=Signature.of(engine.inputs, engine.outputs, free_rows=loaded.batchable),
        rules=warm_up(engine, version.options.batching, batchable=loaded.batchable, padding=loaded.padding),
        precision=loaded.precision,
        refusal=loaded.refusal,
    )


def _needed(version: Version) -> dict[str, str]:
    """The version's files without the upload and the samples, which only a build reads."""
    return {
        name: digest
        for name, digest in version.files.items()
        if not name.startswith(("upload/", workspace.SAMPLES))
    }
