"""Removes what the queue still knows of builds that ended: dbos keeps each run and its steps for ever."""

import logging
import time
from datetime import UTC, datetime
from typing import Protocol

import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.records import UNFINISHED
from service.catalog.schema import BuildRow

logger = logging.getLogger(__name__)

KEPT_S = 24 * 3600.0
"""For who looks into a failed build; octet itself needs a run no longer than the build goes on."""
EVERY_S = 600.0
_AT_ONCE = 100
_MOST_ROUNDS = 10
"""Whoever calls has other things to do; the rest is left to the next time."""


class Runs(Protocol):
    """What the queue keeps of runs."""

    def ended(self, before: str, *, limit: int, offset: int) -> list[str]:
        """Names of runs of builds that were put into the queue before this time (ISO 8601) and have ended."""

    def delete(self, names: list[str]) -> None:
        """Removes these with their steps."""


def forget_ended(catalog: Catalog, queue: Runs, *, kept_s: float = KEPT_S) -> int:
    """Removes runs that were put into the queue longer than `kept_s` ago and have ended, as their builds have.

    Not all at once where they are many. Without its run a build that goes on would begin anew: whatever the queue
    says, the catalog has the last word.

    Raises:
        CatalogUnavailableError: the database does not answer.
    """
    # First, for it says so where the database is away: dbos would wait for that, and all other chores with it.
    catalog.revision()
    before = datetime.fromtimestamp(time.time() - kept_s, UTC).isoformat()
    forgotten = skipped = 0
    for _ in range(_MOST_ROUNDS):
        runs = queue.ended(before, limit=_AT_ONCE, offset=skipped)
        gone = _ended(catalog, runs)
        if gone:
            queue.delete(gone)
        forgotten += len(gone)
        skipped += len(runs) - len(gone)
        if len(runs) < _AT_ONCE:
            break
    if forgotten:
        logger.info("removed %d ended runs from the queue", forgotten)
    return forgotten


def _ended(catalog: Catalog, runs: list[str]) -> list[str]:
    builds = {run: run.partition(".")[0] for run in runs}
    going_on = sa.select(BuildRow.id).where(
        BuildRow.id.in_(set(builds.values())), BuildRow.state.in_(UNFINISHED)
    )
    with catalog.look() as session:
        unfinished = set(session.scalars(going_on))
    return [run for run, build_id in builds.items() if build_id not in unfinished]
