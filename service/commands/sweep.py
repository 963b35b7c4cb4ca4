"""`octet sweep`: everything that is due, removed once, or only counted."""

from collections.abc import Callable

from service.catalog.catalog import Catalog
from service.retention.sweeper import Line, Sweeper
from service.settings import Settings
from service.storage.stores import open_store

SOMETHING_STAYED = 1
"""Exit status where a rule could not be applied; the line says why."""


def run(settings: Settings, *, dry_run: bool, say: Callable[[str], None]) -> int:
    """Sweeps this machine and what it shares with others, says what that came to, and returns the exit status.

    Raises:
        StartError: the tables are older than this code, or the store cannot be opened.
        UnavailableError: the database or the store does not answer.
    """
    catalog = Catalog(settings.catalog_url)
    try:
        sweeper = Sweeper(settings, catalog, open_store(settings))
        lines = sweeper.preview() if dry_run else sweeper.sweep()
    finally:
        catalog.close()
    for line in lines:
        say(_sentence(line, "would remove" if dry_run else "removed"))
    return SOMETHING_STAYED if any(line.problem for line in lines) else 0


def _sentence(line: Line, done: str) -> str:
    if line.problem:
        return f"{line.what}: {line.problem}"
    size = f", {line.removal.size_bytes} bytes" if line.removal.size_bytes else ""
    return f"{done} {line.removal.count} {line.what}{size}"
