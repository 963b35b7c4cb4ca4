"""Which of the published versions a server keeps in memory, and the states that this puts them in."""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from engines.options import Precision
from service.catalog import Version

# Besides a model's default: those that a roll-back or a comparison is likely to ask for.
KEPT_VERSIONS = 3

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
    UNLOADED = "unloaded"
    """Not among the versions that a server keeps in memory; make it the default to have it loaded."""


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """What a version is doing, and why."""

    state: VersionState
    # What really answers; None while nothing does.
    precision: Precision | None = None
    # Why it is refused or has failed, or in what it misses the contract that it answers below.
    reason: str | None = None


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
