"""Which of the published versions a server keeps in memory, and the states that this puts them in.

Everything here is a pure function of what it is given.
"""

import enum
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from engines.options import Precision
from service.catalog.catalog import Version

# Besides a model's default: those that a roll-back or a comparison is likely to ask for.
KEPT_VERSIONS = 3
# After so long without a request, a version that only requests have brought into memory leaves it again.
CALLED_IDLE_S = 600.0

Key = tuple[str, int]
"""Model and version number."""


class VersionState(enum.StrEnum):
    """What a published version is doing in this server."""

    LOADING = "loading"
    """Waits for its engine, or is being loaded."""
    READY = "ready"
    """Answers with the precision that it was built for; the reason is there where that misses its contract."""
    REFUSED = "refused"
    """Its 8-bit engine missed its contract on this machine: FP32 answers instead."""
    FAILED = "failed"
    """Has no engine; the reason says why. Loading is tried again from time to time."""
    QUARANTINED = "quarantined"
    """Crashed the server and is not loaded any more; the reason says how to lift that."""
    UNLOADED = "unloaded"
    """Not in memory. A request for it has it loaded, unless it was unloaded on request."""


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """What a version is doing, and why."""

    state: VersionState
    # What really answers; None while nothing does.
    precision: Precision | None = None
    # Why it is refused or has failed, or in what it misses the contract that it answers below.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """What versions may take, and for how long."""

    # Memory of all loaded versions together.
    max_bytes: int
    # Seconds without a request after which any version is unloaded; None keeps them.
    idle_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resident:
    """A version in memory."""

    memory_bytes: int
    # When it last ran, on the clock of whoever asks.
    used_s: float
    # Whether requests wait for it now.
    busy: bool
    # Whether it is there only because a request called for it.
    called: bool


def idle(residents: Mapping[Key, Resident], limits: MemoryLimits, now_s: float) -> dict[Key, float]:
    """The versions that nobody has used for too long, with the seconds that were too long."""
    found = {}
    for key, resident in residents.items():
        longest = [limits.idle_s] if limits.idle_s is not None else []
        longest += [CALLED_IDLE_S] if resident.called else []
        if longest and not resident.busy and now_s - resident.used_s > min(longest):
            found[key] = min(longest)
    return found


def evicted(
    residents: Mapping[Key, Resident], needed_bytes: int, limits: MemoryLimits, *, kept: Container[Key] = ()
) -> list[Key] | None:
    """Whom to unload so that `needed_bytes` fit, the least recently used first; None where that is not enough.

    Those in `kept` stay. A busy one may go: it answers what it was asked before it does.
    """
    excess_bytes = sum(resident.memory_bytes for resident in residents.values()) + needed_bytes
    excess_bytes -= limits.max_bytes
    found = []
    for key in sorted(residents, key=lambda key: residents[key].used_s):
        if excess_bytes <= 0:
            break
        if key not in kept:
            excess_bytes -= residents[key].memory_bytes
            found.append(key)
    return found if excess_bytes <= 0 else None


def wanted(
    published: Iterable[Version], answering: Mapping[str, int], has_failed: Callable[[Key], bool]
) -> list[Key]:
    """The versions to have in memory, in the order to load them.

    That is every model's default; the version that answers for a model (`answering`) until its default takes
    over, even one that was deleted meanwhile unless the default has failed; and each model's newest others.
    """
    newest = sorted(published, key=lambda version: -version.number)
    defaults = {version.model: version.number for version in newest if version.default}
    numbers: dict[str, list[int]] = {model: [] for model in defaults}
    for version in newest:
        numbers.setdefault(version.model, []).append(version.number)
    stand_ins = [
        (model, number)
        for model, number in answering.items()
        if model in defaults and (number in numbers[model] or not has_failed((model, defaults[model])))
    ]
    others = [
        (model, number)
        for model, known in numbers.items()
        for number in [n for n in known if n != defaults.get(model)][:KEPT_VERSIONS]
    ]
    return list(dict.fromkeys([*defaults.items(), *stand_ins, *others]))
