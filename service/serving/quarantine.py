"""Which versions crashed the server, and which of them are therefore not loaded any more.

A crash is blamed on every version whose native code was running. Suspects take turns afterwards
(`service.serving.flight`), so that the next crash tells them apart: a version that was running in two crashes is
quarantined, and that explains both of them to the benefit of whoever ran beside it.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service.serving.flight import Subject

logger = logging.getLogger(__name__)

MOST_CRASHES = 2
"""Crashes that one version may be blamed for; with so many it is quarantined."""
FORGOTTEN_S = 7 * 24 * 3600.0
"""A single crash that was not repeated for so long says nothing any more."""
FAULTS = frozenset(
    (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
)
"""How a process dies of its own native code. SIGKILL comes from people and from a system without memory."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One death of the server."""

    # Seconds since 1970.
    at_s: float
    # Name of the signal.
    cause: str
    suspects: tuple[Subject, ...]

    def has(self, build_id: str) -> bool:
        """Whether this build is a suspect."""
        return any(subject.build_id == build_id for subject in self.suspects)


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """Why a version is not loaded."""

    subject: Subject
    crashes: tuple[Crash, ...]

    @property
    def reason(self) -> str:
        """For people: what happened, and what to do."""
        last = self.crashes[-1]
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(last.at_s))
        return (
            f"the server crashed {len(self.crashes)} times while this version ran, the last time with {last.cause} "
            f"at {at} UTC; promote another version or build a new one, or try it again with "
            f"POST /v2/repository/models/{self.subject.model}/load"
        )


def with_crash(
    crashes: Sequence[Crash], running: Iterable[Subject], *, cause: str, at_s: float
) -> list[Crash]:
    """The crashes with one more, and without those that are too old to count.

    Of those that were running, the ones that ran in an earlier crash are the suspects, where there are any.
    """
    recent = [crash for crash in crashes if at_s - crash.at_s < FORGOTTEN_S]
    running = tuple(running)
    repeated = tuple(subject for subject in running if subject.build_id in suspects(recent))
    return [*recent, Crash(at_s=at_s, cause=cause, suspects=repeated or running)]


def quarantined(crashes: Sequence[Crash]) -> dict[str, Quarantine]:
    """The versions that are not to be loaded, by build."""
    found: dict[str, Quarantine] = {}
    unexplained: list[Crash] = []
    for crash in crashes:
        unexplained.append(crash)
        for subject in crash.suspects:
            blamed = tuple(known for known in unexplained if known.has(subject.build_id))
            if len(blamed) >= MOST_CRASHES:
                found[subject.build_id] = Quarantine(subject=subject, crashes=blamed)
        unexplained = [known for known in unexplained if not any(map(known.has, found))]
    return found


def suspects(crashes: Sequence[Crash]) -> set[str]:
    """Builds that a crash may have been due to which no quarantine explains."""
    guilty = quarantined(crashes)
    unexplained = (crash for crash in crashes if not any(map(crash.has, guilty)))
    return {subject.build_id for crash in unexplained for subject in crash.suspects}


class CrashLog:
    """The crashes, kept in a file. The supervisor writes it while no server lives, the server while it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._crashes = _read(path)

    @property
    def suspects(self) -> set[str]:
        """See `suspects`."""
        return suspects(self._crashes)

    @property
    def quarantined(self) -> dict[str, Quarantine]:
        """See `quarantined`."""
        return quarantined(self._crashes)

    def add(self, running: Iterable[Subject], *, cause: str) -> Crash:
        """Notes that the server has died while these were running."""
        self._crashes = with_crash(self._crashes, running, cause=cause, at_s=time.time())
        self._save()
        return self._crashes[-1]

    def forgive(self, builds: Collection[str]) -> None:
        """Forgets the crashes that these builds are suspected of, so that they may be loaded again."""
        kept = [crash for crash in self._crashes if not any(crash.has(build_id) for build_id in builds)]
        if len(kept) < len(self._crashes):
            self._crashes = kept
            self._save()

    def _save(self) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                json.dump([asdict(crash) for crash in self._crashes], file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            # Neither the supervisor nor the server may end for want of a note.
            logger.warning(
                "%s cannot be written (%s); the crash is forgotten with this process", self._path, error
            )


def _read(path: Path) -> list[Crash]:
    try:
        return [
            Crash(
                at_s=float(crash["at_s"]),
                cause=str(crash["cause"]),
                suspects=tuple(Subject(**subject) for subject in crash["suspects"]),
            )
            for crash in json.loads(path.read_text(encoding="utf-8"))
        ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        logger.exception("%s cannot be read; earlier crashes are forgotten", path)
        return []
