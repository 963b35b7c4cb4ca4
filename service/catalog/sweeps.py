"""Whose turn it is to sweep: of all processes on one database one at a time, and no sooner than it is due.

Two that swept at the same time would do no harm; they would only do the work twice.
"""

import uuid

import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.schema import SweepRow, clock

HOLD_S = 120.0
"""A sweep without a sign of life for so long has died with its process. Signs come between steps, of which one may
list a whole store."""


class Sweeps:
    """One process's part in it.

    Every method raises CatalogUnavailableError where the database does not answer.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._holder = uuid.uuid4().hex

    def begin(self, *, every_s: float) -> bool:
        """Whether this process is to sweep now: nobody does, and nobody has begun in the last `every_s` seconds."""
        free = SweepRow.holder.is_(None) | (SweepRow.beat_at < clock() - HOLD_S)
        due = SweepRow.begun_at <= clock() - every_s
        return self._note(free & due, holder=self._holder, begun_at=clock(), beat_at=clock())

    def beat(self) -> None:
        """Says that this process goes on."""
        self._note(SweepRow.holder == self._holder, beat_at=clock())

    def end(self) -> None:
        """Says that this process is done."""
        self._note(SweepRow.holder == self._holder, holder=None)

    def _note(self, where: sa.ColumnElement[bool], **values: object) -> bool:
        change = sa.update(SweepRow).where(where).values(**values).returning(SweepRow.id)
        with self._catalog.change() as session:
            return session.scalars(change).first() is not None
