"""Which versions have been loaded and run in a child on this machine before, and what was found to suit them.

They need no rehearsal again, and nothing has to be found out again. A rehearsal costs a process that imports every
library and loads the engine; finding out which batch sizes gain by what costs more than compiling. After a crash, both
would be most of the time for which a model is away.
"""

import hashlib
import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter

from engines.runtimes.fit import Fit
from service.catalog.catalog import Version

logger = logging.getLogger(__name__)

_MOST = 1000
_PASSED = TypeAdapter(dict[str, Fit])


class Rehearsals:
    """A file of what went well. One process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The oldest first.
        self._passed = _read(path)

    def fit(self, name: str) -> Fit | None:
        """What suited the engine of `name`, of `rehearsal_name`; None where it has not gone well yet."""
        return self._passed.get(name)

    def add(self, name: str, fit: Fit) -> None:
        """Notes that it went well, and what suits it. A disk that is full only costs time."""
        self._passed[name] = fit
        for oldest in list(self._passed)[:-_MOST]:
            del self._passed[oldest]
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(_PASSED.dump_json(self._passed))
            fresh.replace(self._path)
        except OSError as error:
            logger.warning("%s cannot be written (%s); versions are rehearsed again", self._path, error)


def rehearsal_name(published: Version, *, hardware_key: str, threads: int, lanes: int) -> str:
    """What a rehearsal holds for: the version's files and options, the hardware with its libraries, and octet."""
    facts = {
        "build": published.build_id,
        "files": sorted(published.files.items()),
        "options": published.options.model_dump(mode="json"),
        "hardware": hardware_key,
        "threads": threads,
        "lanes": lanes,
        "octet": _octet_version(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _octet_version() -> str:
    try:
        return version("octet")
    except PackageNotFoundError:
        # Run from a checkout that nobody installed.
        return "0+source"


def _read(path: Path) -> dict[str, Fit]:
    try:
        return _PASSED.validate_json(path.read_bytes())
    except (OSError, ValueError):
        # Missing, damaged, or of an earlier octet: everything is rehearsed once more.
        return {}
