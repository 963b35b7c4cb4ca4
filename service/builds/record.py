"""A build in the catalog, as the worker writes it that has claimed it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from service.builds.patience import AWAY_OR_FULL, patiently
from service.catalog.catalog import Build, Catalog
from service.catalog.records import EngineStatus

_Result = TypeVar("_Result")


class BuildRecord:
    """One build under one claim. A database that is away, or has no room for a note, is waited for.

    Every method that writes raises ClaimLostError where another worker has claimed the build.
    """

    def __init__(self, catalog: Catalog, build_id: str, claim: int | None) -> None:
        self.build_id = build_id
        self._catalog = catalog
        self._claim = claim

    def read(self) -> Build:
        """The build as it is now."""
        return _patiently(lambda: self._catalog.build(self.build_id))

    def begin(self, phase: str, progress: float) -> bool:
        """Notes that `phase` begins. False where the build has ended: nothing more may be done for it."""
        return _patiently(
            lambda: self._catalog.begin_phase(self.build_id, phase, progress, claim=self._claim)
        )

    def goes_on(self, progress: float) -> bool:
        """Notes the progress of the whole build; whether it still goes on. Nobody is waited for: work goes on."""
        try:
            return self._catalog.note_progress(self.build_id, progress, claim=self._claim)
        except AWAY_OR_FULL:
            return True

    def finish(self, phase: str, *, seconds: float, files: Mapping[str, str]) -> bool:
        """Notes what a phase took and wrote; twice is once. False where the build has ended."""
        return _patiently(
            lambda: self._catalog.finish_phase(
                self.build_id, phase, seconds=seconds, files=files, claim=self._claim
            )
        )

    def fail(self, *, error: str, code: str) -> bool:
        """Ends the build with an error. False where it has ended already."""
        return _patiently(
            lambda: self._catalog.fail(self.build_id, error=error, code=code, claim=self._claim)
        )

    def publish(
        self, *, files: Mapping[str, str], summary: dict[str, Any], engine: EngineStatus | None
    ) -> int:
        """Makes the result a version and returns its number; a second time, the same number.

        Raises:
            CancelledBuildError: the build was cancelled, or has failed, in the meantime.
        """
        return _patiently(
            lambda: self._catalog.publish(
                self.build_id, files=files, summary=summary, engine=engine, claim=self._claim
            )
        ).number


def _patiently(work: Callable[[], _Result]) -> _Result:
    return patiently(work, waits_for=AWAY_OR_FULL)
