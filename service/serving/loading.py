"""From a published version to a warm engine: fetch, rehearse in a child, load with its proof, warm up."""

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines import hardware_key, load_engine, workspace
from engines.model.tensors import Array
from engines.options import Precision
from engines.runtimes.base import Engine
from engines.runtimes.engine_cache import noting_entries
from engines.runtimes.fit import Fit
from service.batching.batch_sizes import BatchRules
from service.builds.sandbox import Limits, Sandbox, Watch
from service.catalog.catalog import Version
from service.processes import memory
from service.protocol import Signature
from service.retention.engine_uses import EngineUses
from service.serving.engine_exchange import EngineExchange
from service.serving.flight import FlightRecorder, Subject
from service.serving.quarantine import CrashLog
from service.serving.rehearsals import Rehearsals, rehearsal_name
from service.serving.warm_up import warm_up
from service.storage.blobs import BlobStore


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
    # A batch of its proof, by which an engine that fails is told from requests that make it fail.
    sample: Mapping[str, Array]
    # What it added to this process's resident memory, its buffers included.
    memory_bytes: int


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
    # Batches that run at the same time on them.
    lanes: int
    # What a rehearsal may take.
    limits: Limits
    # How engines are shared with the servers of the same hardware.
    exchange: EngineExchange
    # Where native code that runs in this process is on record.
    recorder: FlightRecorder
    # What need not be rehearsed, unless the server has crashed since while it ran.
    rehearsals: Rehearsals
    crashes: CrashLog
    # Which versions the cached engines are for.
    uses: EngineUses
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
        flight = self.recorder.entry(subject_of(version))
        try:
            self.store.materialise(_needed(version), folder)
            hardware = hardware_key(version.options)
            with self.exchange.compilation(version, hardware, self.stopping.is_set) as compilation:
                fit, compilation.entries = self._rehearse(version, folder, hardware, always=compilation.ours)
                with noting_entries() as entries:
                    loaded = flight.run(lambda: self._load(version, folder, fit))
                self.uses.note(version.build_id, entries)
                compilation.refusal = loaded.refusal
            return loaded
        finally:
            flight.close()
            # An engine has what it needs in memory or in the cache.
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self, version: Version, folder: Path, fit: Fit) -> Loaded:
        memory.give_back()
        before_bytes = memory.resident_bytes(os.getpid())
        loaded = load_engine(
            folder, version.options, threads=self.threads, cache=self.cache, streams=self.lanes, fit=fit
        )
        engine = loaded.engine
        try:
            rules = warm_up(
                engine,
                version.options.batching,
                batchable=loaded.batchable,
                padding=loaded.padding,
                gains=loaded.fit.gains,
            )
        except BaseException:
            engine.close()
            raise
        # What was left over from others may have been used again: the weights at least are its own.
        weights_bytes = _weights_bytes(folder, loaded.precision)
        return Loaded(
            engine=engine,
            signature=Signature.of(engine.inputs, engine.outputs, free_rows=loaded.batchable),
            rules=rules,
            precision=loaded.precision,
            refusal=loaded.refusal,
            sample={
                name: array[:1].copy() if loaded.batchable else array for name, array in loaded.rows.items()
            },
            memory_bytes=max(memory.resident_bytes(os.getpid()) - before_bytes, weights_bytes),
        )

    def _rehearse(
        self, version: Version, folder: Path, hardware: str, *, always: bool
    ) -> tuple[Fit, list[str]]:
        """Loads and runs the version in a process of its own: a crash inside a library costs that one.

        Returns what suits its engine, and the paths in the cache of what it compiled or read; none of these where it
        was not necessary.
        """
        name = rehearsal_name(version, hardware_key=hardware, threads=self.threads, lanes=self.lanes)
        known = self.rehearsals.fit(name)
        if known is not None and not always and version.build_id not in self.crashes.suspects:
            return known, []
        arguments = {
            "folder": str(folder),
            "options": version.options.model_dump(mode="json"),
            "threads": self.threads,
            "lanes": self.lanes,
            "cache": str(self.cache),
        }
        environment = os.environ | {"OCTET_THREADS": str(self.threads)}
        with Sandbox(self.limits, environment=environment) as sandbox:
            checked = sandbox.call(
                "load_check",
                arguments,
                what=f"loading version {version.number} of model '{version.model}'",
                watch=Watch(cancelled=self.stopping.is_set),
            )
        found = Fit.model_validate(checked["fit"])
        self.rehearsals.add(name, found)
        return found, list(checked["entries"])


def subject_of(version: Version) -> Subject:
    """The version, as crashes are blamed on it."""
    return Subject(model=version.model, number=version.number, build_id=version.build_id)


def _weights_bytes(folder: Path, precision: Precision) -> int:
    names = (
        (workspace.PREPARED, workspace.PREPARED_WEIGHTS)
        if precision is Precision.FP32
        else (workspace.QUANTIZED, workspace.QUANTIZED_WEIGHTS)
    )
    return sum(path.stat().st_size for path in map(folder.joinpath, names) if path.is_file())


def _needed(version: Version) -> dict[str, str]:
    """The version's files without the upload and the samples, which only a build reads."""
    return {
        name: digest
        for name, digest in version.files.items()
        if not name.startswith(("upload/", workspace.SAMPLES))
    }
