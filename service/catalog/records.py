"""What the catalog hands out: builds and versions as frozen values, detached from the database."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.options import BuildOptions


class BuildState(enum.StrEnum):
    """Where a build is."""

    QUEUED = "queued"
    """Accepted; no worker has begun."""
    RUNNING = "running"
    """A worker is in one of its phases, or was when it died and will be again."""
    SUCCEEDED = "succeeded"
    """Its version is published."""
    FAILED = "failed"
    """It ended with an error; nothing was published."""
    CANCELLED = "cancelled"
    """Somebody called it off; nothing was published."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in UNFINISHED


UNFINISHED = (BuildState.QUEUED, BuildState.RUNNING)


class Samples(enum.StrEnum):
    """What becomes of a build's samples once it has ended."""

    KEEP = "keep"
    """They are kept as long as the settings say."""
    DELETE = "delete"
    """They are removed as soon as it has ended, however it did."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build as it was when it was read."""

    id: str
    model: str
    options: BuildOptions
    state: BuildState
    # The phase going on, or the last one begun; None before the first.
    phase: str | None
    # Of the whole build, 0 to 1.
    progress: float
    # Seconds that each finished phase took.
    timings: Mapping[str, float]
    # Workspace name -> digest: the upload, then what each finished phase wrote.
    files: Mapping[str, str]
    # One sentence and its dotted code, where the build failed or was cancelled.
    error: str | None
    code: str | None
    # The number of the version it published.
    version: int | None
    # Seconds since the epoch.
    created_at: float
    started_at: float | None
    finished_at: float | None
    samples: Samples
    # When the samples were removed; None while they are kept.
    samples_removed_at: float | None
    # The API key that it was uploaded with; None where none was asked for.
    key_id: str | None


@dataclass(frozen=True, kw_only=True)
class Version:
    """One published result of a build."""

    model: str
    number: int
    build_id: str
    # Workspace name -> blob digest, "sha256:...".
    files: Mapping[str, str]
    options: BuildOptions
    # What the report says in short.
    summary: dict[str, Any]
    # Seconds since the epoch.
    created_at: float
    # Whether it answers when a request names no version.
    default: bool


@dataclass(frozen=True, kw_only=True)
class NewBuild:
    """An upload that was stored and may be built."""

    model: str
    fingerprint: str
    options: BuildOptions
    files: Mapping[str, str]
    # The kind of hardware to build it on: that of the server which took it. Any kind where None.
    hardware: str | None = None
    samples: Samples = Samples.KEEP
    # The API key that it was uploaded with.
    key_id: str | None = None


class EngineState(enum.StrEnum):
    """How far a version is on one kind of hardware."""

    COMPILING = "compiling"
    """Somebody compiles it and makes it replay its proof."""
    VERIFIED = "verified"
    """Its engine has reproduced the proof on this hardware."""
    REFUSED = "refused"
    """It has not, or there is no such engine: FP32 answers on this hardware, or nothing does."""


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """A version on one kind of hardware."""

    hardware: str
    state: EngineState
    # Why it is refused.
    reason: str | None
    # Path in the engine cache -> digest.
    files: Mapping[str, str]
