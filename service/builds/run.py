"""One run of a build in this process: phases in a sandbox, what they wrote into the store, then a version.

Every step may be repeated: a worker that was killed in the middle of one runs it again from the files of the
steps before. What a step learned is its return value, which the durable queue records (`service.builds.workflow`).
A failure that would come again is such a result, not an error: the build has ended, and the step says None.
A database or a store that is away is waited for, and for some time one that is full. A run that finds its build
claimed by another worker ends its process: it must record nothing any more.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypedDict, TypeVar

from engines.errors import EngineError
from engines.reports.report import Verdict
from engines.workspace import ENGINES, SAMPLES, UPLOADED_LABELS, UPLOADED_SAMPLES, Workspace
from service.builds.crashpoints import reached
from service.builds.patience import patiently
from service.builds.record import BuildRecord
from service.builds.sandbox import Sandbox, Watch
from service.catalog.catalog import Build, Catalog
from service.catalog.holds import Holds
from service.catalog.records import EngineState, EngineStatus
from service.errors import (
    CancelledBuildError,
    ClaimLostError,
    NotFoundError,
    SandboxCrashError,
    ServiceError,
    StorageFullError,
)
from service.storage.blobs import BlobStore, digest_of

if TYPE_CHECKING:
    # Imports OpenTelemetry, which need not be installed.
    from service.monitoring.spans import SpanWriter

logger = logging.getLogger(__name__)

_REPORT_S = 0.2
"""How often progress goes to the catalog, and word back whether the build still goes on."""
_WEIGHTS = {"calibrate": 6.0, "verify": 3.0, "quantize": 2.0, "compile": 2.0}
"""Rough share of a build's time that a phase takes; 1 for the others."""
_NOT_PUBLISHED = (UPLOADED_SAMPLES, SAMPLES, UPLOADED_LABELS, ENGINES)
"""Only a build reads the samples: a version does not keep them. Engines are of one kind of hardware."""
_UPLOAD = "upload/"
FULL_S = 600.0
"""How long a build waits for room; one that lacks it for longer fails."""
FULL_PAUSE_S = 5.0
_Result = TypeVar("_Result")


class PhasePlan(TypedDict):
    """A phase of a build, as the sandbox names it."""

    name: str
    # Workspace names, or prefixes that end in `/`, of the files that it writes.
    outputs: list[str]


class Outcome(TypedDict):
    """What a finished phase leaves to the next ones."""

    # Workspace name -> digest.
    files: dict[str, str]
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Share:
    """A part of the progress bar."""

    before: float
    size: float


@dataclass(frozen=True, kw_only=True)
class Builder:
    """What every build needs."""

    catalog: Catalog
    store: BlobStore
    # Holds the files of the builds going on; nothing in it outlives the worker.
    folder: Path
    sandbox: Callable[[], Sandbox]
    # Ends this process, whose build another worker has claimed.
    give_way: Callable[[], NoReturn]
    # Writes spans of phases, where a collector of traces is named.
    spans: "SpanWriter | None" = None

    def run(self, build_id: str, claim: int | None = None) -> "BuildRun":
        """Begins, or goes on with, a build that was claimed with this number."""
        return BuildRun(self, build_id, claim)

    def clear(self) -> None:
        """Removes what an earlier worker left."""
        shutil.rmtree(self.folder, ignore_errors=True)


class BuildRun:
    """The steps of one build, in the order `plan`, `phase` ..., `publish`."""

    def __init__(self, builder: Builder, build_id: str, claim: int | None) -> None:
        self._record = BuildRecord(builder.catalog, build_id, claim)
        self._give_way = builder.give_way
        self._store = builder.store
        self._holds = Holds(builder.catalog)
        self._spans = builder.spans
        self.sandbox = builder.sandbox()
        self._build_id = build_id
        # A name of its own: the child of a worker that has just been killed may still be writing.
        self._workspace = Workspace(builder.folder / f"{build_id}-{uuid.uuid4().hex[:8]}")
        self._filled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sandbox.close()
        shutil.rmtree(self._workspace.root, ignore_errors=True)

    def plan(self) -> list[PhasePlan] | None:
        """The phases that this build will go through."""

        def ask() -> list[PhasePlan] | None:
            if self._record.read().state.ended:
                return None
            plan: list[PhasePlan] = self.sandbox.call("plan", {}, what="the start of the build")
            return plan

        return self._guarded(ask)

    def phase(self, plan: list[PhasePlan], number: int, files: Mapping[str, str]) -> Outcome | None:
        """Runs phase `number` of the plan; `files` is what the phases before it wrote."""
        phase = plan[number]
        share = _share(plan, number)

        def work() -> Outcome | None:
            if not self._record.begin(phase["name"], share.before):
                return None
            started = time.monotonic()
            with ExitStack() as held:
                with self._span(phase["name"]):
                    summary, written = self._with_room(
                        lambda: (
                            self._attempt(phase["name"], files, share),
                            self._stored(phase["outputs"], held),
                        ),
                        share,
                    )
                seconds = time.monotonic() - started
                concerned = {"build": self._build_id, "phase": phase["name"]}
                logger.info(
                    "build %s: %s took %.1f s", self._build_id, phase["name"], seconds, extra=concerned
                )
                reached("phase.before_note", phase["name"])
                self._record.finish(phase["name"], seconds=seconds, files=written)
                reached("phase.after_note", phase["name"])
            return Outcome(files=written, summary=summary)

        return self._guarded(work)

    def publish(self, plan: list[PhasePlan], files: Mapping[str, str], summary: dict[str, Any]) -> int | None:
        """Makes the result a version and returns its number; a second time, the same number."""
        share = _share(plan, len(plan))

        def work() -> int:
            self._record.begin("publish", share.before)
            kept = {
                name: digest
                for name, digest in {**_uploaded(self._record.read()), **files}.items()
                if not name.startswith(_NOT_PUBLISHED)
            }
            return self._record.publish(files=kept, summary=summary, engine=_engine(files, summary))

        return self._guarded(work)

    def _span(self, phase: str) -> AbstractContextManager[None]:
        return nullcontext() if self._spans is None else self._spans.phase(self._build_id, phase)

    def _guarded(self, work: Callable[[], _Result]) -> _Result | None:
        """Turns the errors of a step into the end of the build."""
        try:
            return self._ended_by_errors(work)
        except ClaimLostError as error:
            logger.warning("%s This worker gives way.", error, extra={"build": self._build_id})
            self._give_way()

    def _ended_by_errors(self, work: Callable[[], _Result]) -> _Result | None:
        try:
            return work()
        except ClaimLostError:
            raise
        except CancelledBuildError:
            logger.info("build %s was cancelled", self._build_id, extra={"build": self._build_id})
        except NotFoundError:
            # By whoever had cancelled it: nothing is left to note anything of.
            logger.info("build %s was forgotten", self._build_id, extra={"build": self._build_id})
        except (EngineError, ServiceError) as error:
            logger.info("build %s failed: %s", self._build_id, error, extra={"build": self._build_id})
            self._record.fail(error=str(error), code=error.code)
        return None

    def _attempt(self, phase: str, files: Mapping[str, str], share: _Share) -> dict[str, Any]:
        """Runs a phase; once more where its process died of a fault: memory that others took may be back."""
        try:
            return self._run(phase, files, share)
        except SandboxCrashError as error:
            logger.warning(
                "build %s: %s It is tried once more.",
                self._build_id,
                error,
                extra={"build": self._build_id, "phase": phase},
            )
            self._empty()
            return self._run(phase, files, share)

    def _with_room(self, work: Callable[[], _Result], share: _Share) -> _Result:
        """Does `work` again while a disk or the store is full, for some time: sweeps and people make room.

        Not for ever: it may be this build that needs more than there is.

        Raises:
            StorageFullError: there was no room all the time.
            CancelledBuildError: the build was cancelled meanwhile.
        """
        until_s = time.monotonic() + FULL_S
        while True:
            try:
                return work()
            except StorageFullError as error:
                # What is there of it may be just what others lack.
                self._empty()
                if time.monotonic() > until_s:
                    raise
                logger.warning(
                    "build %s: %s It is tried again in %g s.",
                    self._build_id,
                    error,
                    FULL_PAUSE_S,
                    extra={"build": self._build_id},
                )
            time.sleep(FULL_PAUSE_S)
            if not self._record.goes_on(share.before):
                raise CancelledBuildError("the build was cancelled.")

    def _empty(self) -> None:
        """Has the next attempt begin with the files of the phases before."""
        self.sandbox.close()
        shutil.rmtree(self._workspace.root, ignore_errors=True)
        self._filled = False

    def _run(self, phase: str, files: Mapping[str, str], share: _Share) -> dict[str, Any]:
        build = self._record.read()
        if not self._filled:
            patiently(lambda: self._store.materialise({**_uploaded(build), **files}, self._workspace.root))
            self._filled = True
        arguments = {
            "phase": phase,
            "workspace": str(self._workspace.root),
            "options": build.options.model_dump(mode="json"),
        }
        summary: dict[str, Any] = self.sandbox.call(
            "phase",
            arguments,
            what=f"the phase {phase}",
            watch=_Reporter(self._record, share).watch,
        )
        return summary

    def _stored(self, outputs: Sequence[str], held: ExitStack) -> dict[str, str]:
        """Puts the files that a phase wrote into the store; until `held` ends, no sweep removes them."""
        names = [
            name
            for output in outputs
            for name in self._workspace.list(output)
            if name == output or output.endswith("/")
        ]
        digests = {name: digest_of(self._workspace.path(name)) for name in names}
        held.enter_context(patiently(lambda: self._holds.hold(digests.values())))
        return {name: self._put(name) for name in names}

    def _put(self, name: str) -> str:
        return patiently(lambda: self._store.put(self._workspace.path(name)))


class _Reporter:
    """Brings progress to the catalog, now and then, and word back whether the build still goes on."""

    def __init__(self, record: BuildRecord, share: _Share) -> None:
        self._record = record
        self._share = share
        self._done = 0.0
        self._next_at = time.monotonic()
        self._goes_on = True

    @property
    def watch(self) -> Watch:
        """What the sandbox is to report to and ask."""
        return Watch(progress=self._progress, cancelled=self._cancelled)

    def _progress(self, done: float) -> None:
        self._done = min(1.0, max(self._done, done))

    def _cancelled(self) -> bool:
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + _REPORT_S
            progress = self._share.before + self._done * self._share.size
            self._goes_on = self._record.goes_on(progress)
        return not self._goes_on


def _share(plan: Sequence[PhasePlan], number: int) -> _Share:
    """The part of the whole progress bar that phase `number` has; publishing comes after the plan."""
    weights = [_WEIGHTS.get(phase["name"], 1.0) for phase in plan]
    total = sum(weights) + 1.0
    return _Share(before=sum(weights[:number]) / total, size=[*weights, 1.0][number] / total)


def _uploaded(build: Build) -> dict[str, str]:
    return {name: digest for name, digest in build.files.items() if name.startswith(_UPLOAD)}


def _engine(files: Mapping[str, str], summary: Mapping[str, Any]) -> EngineStatus | None:
    """What the version is on this hardware, where its engines are among the files."""
    engines = {
        name.removeprefix(ENGINES): digest for name, digest in files.items() if name.startswith(ENGINES)
    }
    if not engines:
        return None
    refused = summary.get("verdict") == Verdict.REFUSED
    return EngineStatus(
        hardware=next(iter(engines)).partition("/")[0],
        state=EngineState.REFUSED if refused else EngineState.VERIFIED,
        reason=str(summary.get("reason")) if refused else None,
        files=engines,
    )
