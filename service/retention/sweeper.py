"""Applies the rules of retention: on this machine, and once for all machines that share a database."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from service.catalog.catalog import Catalog
from service.catalog.retention import Retention
from service.catalog.sweeps import Sweeps
from service.errors import ServiceError
from service.retention.local import local_rules
from service.retention.rules import Beat, Removal, Rule
from service.retention.shared import EndedSamples, shared_rules
from service.settings import Settings
from service.storage.blobs import BlobStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one rule came to."""

    what: str
    removal: Removal
    # Why it could not be applied, or not to the end.
    problem: str | None = None


class Sweeper:
    """Sweeps for one process."""

    def __init__(self, settings: Settings, catalog: Catalog, store: BlobStore) -> None:
        self._shared = settings.shared
        self._every_s = settings.sweep_every_s
        self._sweeps = Sweeps(catalog)
        self._at_once = EndedSamples(Retention(catalog), store)
        self._local_rules = local_rules(settings, catalog, store)
        self._shared_rules = shared_rules(settings, catalog, store)

    def preview(self) -> list[Line]:
        """What a sweep would remove now. What becomes unnamed by it is not foreseen.

        Raises:
            UnavailableError: the database or the store does not answer.
        """
        return [
            Line(what=rule.what, removal=rule.due()) for rule in (*self._local_rules, *self._shared_rules)
        ]

    def sweep(self) -> list[Line]:
        """Applies all rules, whoever else does."""
        return _apply((*self._local_rules, *self._shared_rules), _no_beat)

    def sweep_when_due(self) -> list[Line]:
        """Applies the rules of this machine, and the others where no other process does it or has just done it."""
        lines = _apply(self._local_rules, _no_beat)
        if not self._shared:
            # Without a shared database nobody else sweeps, and a full disk could not even note who does.
            return [*lines, *_apply(self._shared_rules, _no_beat)]
        if self._sweeps.begin(every_s=self._every_s):
            try:
                lines += _apply(self._shared_rules, self._sweeps.beat)
            finally:
                self._sweeps.end()
        return lines

    def remove_samples_at_once(self) -> list[Line]:
        """Removes the samples of builds that have ended and whose uploader wants them gone."""
        return _apply((self._at_once,), _no_beat)


def _apply(rules: Sequence[Rule], beat: Beat) -> list[Line]:
    """Applies one rule after the other; one that cannot be applied leaves the others alone."""
    return [_line(rule, beat) for rule in rules]


def _line(rule: Rule, beat: Beat) -> Line:
    try:
        removal = rule.apply(beat)
    except (ServiceError, OSError) as error:
        logger.warning("%s cannot be removed: %s", rule.what, error)
        return Line(what=rule.what, removal=Removal(), problem=str(error))
    if removal.count:
        logger.info("removed %d %s, %d bytes", removal.count, rule.what, removal.size_bytes)
    return Line(what=rule.what, removal=removal)


def _no_beat() -> None:
    """Nobody waits for a sign."""
