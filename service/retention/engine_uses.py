"""Which versions the engines in this machine's cache are for: a file that its server writes.

Entries of the cache are named by their content, so nothing else tells whose they are.
"""

import json
import logging
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

logger = logging.getLogger(__name__)


class EngineUses:
    """The file `path`, about the entries of the cache `cache`. One process writes it."""

    def __init__(self, path: Path, cache: Path) -> None:
        self._path = path
        self._cache = cache

    def read(self) -> dict[str, list[str]]:
        """Path in the cache -> the builds whose versions were loaded with it."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(entry): [str(build) for build in builds] for entry, builds in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            # Missing, or damaged: entries then go when nobody uses them any more.
            return {}

    def note(self, build_id: str, entries: Collection[Path]) -> None:
        """Notes what a version was loaded with. A disk that is full only costs room: entries stay longer."""
        known = {entry: builds for entry, builds in self.read().items() if (self._cache / entry).exists()}
        for entry in (path.relative_to(self._cache).as_posix() for path in entries):
            known[entry] = sorted({*known.get(entry, ()), build_id})
        self._write(known)

    def of(self, build_ids: AbstractSet[str]) -> list[Path]:
        """The entries that these builds' versions were loaded with."""
        return [
            self._cache / entry for entry, builds in self.read().items() if not build_ids.isdisjoint(builds)
        ]

    def _write(self, known: Mapping[str, list[str]]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(known), encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s); engines of deleted versions stay longer", self._path, error
            )
