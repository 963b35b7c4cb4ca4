"""Which versions have been loaded and run in a child on this machine before: they need no rehearsal again.

A rehearsal costs a process that imports every library and loads the engine, which after a crash is most of the time
for which a model is away.
"""

import hashlib
import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.catalog.catalog import Version

logger = logging.getLogger(__name__)

_MOST = 1000


class Rehearsals:
    """A file of what went well. One process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The oldest first.
        self._passed = dict.fromkeys(_read(path))

    def passed(self, name: str) -> bool:
        """Whether `name`, of `rehearsal_name`, went well before."""
        return name in self._passed

    def add(self, name: str) -> None:
        """Notes that it went well. A disk that is full only costs time."""
        self._passed[name] = None
        for oldest in list(self._passed)[:-_MOST]:
            del self._passed[oldest]
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(list(self._passed)), encoding="ascii")
            fresh.replace(self._path)
        except OSError as error:
            logger.warning("%s cannot be written (%s); versions are rehearsed again", self._path, error)


def rehearsal_name(published: Version, *, hardware_key: str, threads: int) -> str:
    """What a rehearsal holds for: the version's files and options, the hardware with its libraries, and octet."""
    facts = {
        "build": published.build_id,
        "files": sorted(published.files.items()),
        "options": published.options.model_dump(mode="json"),
        "hardware": hardware_key,
        "threads": threads,
        "octet": _octet_version(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _octet_version() -> str:
    try:
        return version("octet")
    except PackageNotFoundError:
        # Run from a checkout that nobody installed.
        return "0+source"


def _read(path: Path) -> list[str]:
    try:
        return [name for name in json.loads(path.read_text(encoding="ascii")) if isinstance(name, str)]
    except (OSError, ValueError, TypeError):
        # Missing, or damaged: everything is rehearsed once more.
        return []
