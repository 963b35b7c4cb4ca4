"""Blobs on their way: stored, or about to be, and not yet named by anything that a sweep would look at.

Whoever stores blobs holds them from before the first of them is in the store until a row names them all. Both the
hold and the removal of what nobody names take their turn (`Catalog.turn`): a sweep whose turn comes later sees the
hold; after one whose turn came earlier, whatever it removed is stored again.
"""

import contextlib
import logging
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager

import sqlalchemy as sa

from service.catalog.catalog import Catalog
from service.catalog.schema import HoldRow, clock
from service.errors import StorageFullError, UnavailableError

logger = logging.getLogger(__name__)

HELD_S = 24 * 3600.0
"""Longer than it takes to store anything; what a killed process held is not held for ever."""


class Holds:
    """The holds of all processes on one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def hold(self, digests: Iterable[str]) -> AbstractContextManager[object]:
        """Holds these blobs from now on, until the end of the block or of this process.

        Raises:
            CatalogUnavailableError: the database does not answer.
            StorageFullError: it has no room.
        """
        row, wanted = uuid.uuid4().hex, sorted(set(digests))
        if not wanted:
            return contextlib.nullcontext()
        with self._catalog.turn() as session:
            session.execute(sa.insert(HoldRow).values(id=row, digests=wanted, held_at=clock()))
        held = contextlib.ExitStack()
        held.callback(self._release, row)
        return held

    def _release(self, row: str) -> None:
        try:
            with self._catalog.change() as session:
                session.execute(sa.delete(HoldRow).where(HoldRow.id == row))
        except (UnavailableError, StorageFullError) as error:
            logger.warning("%s Blobs that nothing names may stay for a day longer.", error)
