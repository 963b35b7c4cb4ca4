"""What a version is on each kind of hardware: compiling, verified or refused, and the engine's files."""

import sqlalchemy as sa

from service.catalog.catalog import Catalog, Version
from service.catalog.records import EngineState, EngineStatus
from service.catalog.schema import EngineRow, clock

HOLD_S = 30.0
"""A compilation of which nothing was heard for so long has died with its process."""


class EngineStates:
    """The record that all servers share.

    Every method raises CatalogUnavailableError where the database does not answer.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def of(self, model: str, number: int) -> list[EngineStatus]:
        """The version on every kind of hardware that has been tried, by its name."""
        query = (
            sa.select(EngineRow)
            .where(EngineRow.model == model, EngineRow.number == number)
            .order_by(EngineRow.hardware)
        )
        with self._catalog.look() as session:
            return [_status(row) for row in session.scalars(query)]

    def hold(self, version: Version, hardware: str, holder: str) -> EngineStatus | None:
        """Takes the compilation for `holder` if it is nobody's.

        Returns:
            None where the holder has it now and is to compile; else how far somebody else is.
        """
        key = (version.model, version.number, hardware)
        with self._catalog.turn() as session:
            now = session.scalars(sa.select(clock())).one()
            row = session.get(EngineRow, key)
            if row is None:
                row = EngineRow(model=version.model, number=version.number, hardware=hardware)
                session.add(row)
            elif row.state != EngineState.COMPILING or (
                row.holder != holder and row.changed_at > now - HOLD_S
            ):
                return _status(row)
            row.state, row.reason, row.files = EngineState.COMPILING, None, {}
            row.holder, row.changed_at = holder, now
        return None

    def keep(self, version: Version, hardware: str, holder: str) -> None:
        """Says that the holder still compiles."""
        with self._catalog.change() as session:
            session.execute(
                sa.update(EngineRow).where(_held(version, hardware, holder)).values(changed_at=clock())
            )

    def settle(self, version: Version, status: EngineStatus, holder: str) -> None:
        """Notes what came of a compilation, unless somebody else has taken it over."""
        with self._catalog.change() as session:
            session.execute(
                sa.update(EngineRow)
                .where(_held(version, status.hardware, holder))
                .values(
                    state=status.state,
                    reason=status.reason,
                    files=dict(status.files),
                    holder=None,
                    changed_at=clock(),
                )
            )

    def drop(self, version: Version, hardware: str, holder: str) -> None:
        """Gives a compilation up that came to nothing: the next one may try."""
        with self._catalog.change() as session:
            session.execute(sa.delete(EngineRow).where(_held(version, hardware, holder)))


def _held(version: Version, hardware: str, holder: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        EngineRow.model == version.model,
        EngineRow.number == version.number,
        EngineRow.hardware == hardware,
        EngineRow.holder == holder,
    )


def _status(row: EngineRow) -> EngineStatus:
    return EngineStatus(
        hardware=row.hardware, state=EngineState(row.state), reason=row.reason, files=dict(row.files)
    )
