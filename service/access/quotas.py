"""What a key's builds and versions take, against what they may."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import sqlalchemy as sa
from pydantic import ByteSize
from sqlalchemy.orm import Session

from engines.errors import InvalidArtifactError
from service.access.caller import Caller
from service.catalog.catalog import Catalog
from service.catalog.records import UNFINISHED
from service.catalog.retention import kept_uploads
from service.catalog.schema import BuildRow, VersionRow
from service.errors import BuildQuotaError, BytesQuotaError


class UploadQuota:
    """Whether a caller may have one more build, of the blobs `files`.

    Files are counted once, however many builds and versions need them, and as long as they are kept, those of failed
    builds too; engines that machines compile are not the key's. What a build writes after it was accepted counts at the
    next one.
    """

    def __init__(self, caller: Caller, files: Mapping[str, int], size_bytes: Callable[[str], int]) -> None:
        """`files` are digests with their sizes, which need not be stored yet.

        `size_bytes` gives the size of a blob in the store, and raises InvalidArtifactError where there is none.
        """
        self._caller = caller
        self._files = files
        self._size_bytes = size_bytes

    def prepare(self, catalog: Catalog) -> None:
        """Has the store say sizes that it remembers then: `check` is called while others wait."""
        if self._caller.quotas.max_bytes is not None:
            with catalog.look() as session:
                held = set(self._held(session))
            self._total_bytes(held)

    def check(self, session: Session) -> None:
        """Looks in the transaction that would record the build, so that of two at the same time one is over.

        Raises:
            BuildQuotaError: as many builds go on as may.
            BytesQuotaError: the files would take more than they may.
        """
        quotas, key = self._caller.quotas, f"key {self._caller.key_id} ({self._caller.name})"
        if quotas.max_builds is not None and (going_on := self._unfinished(session)) >= quotas.max_builds:
            raise BuildQuotaError(
                f"{key} has {going_on} builds queued or running and may have {quotas.max_builds}; "
                "wait for one to end, or cancel one."
            )
        if quotas.max_bytes is None:
            return
        total_bytes = self._total_bytes(self._held(session))
        if total_bytes > quotas.max_bytes:
            raise BytesQuotaError(
                f"with this upload the models and builds of {key} would take {_sized(total_bytes)} and may take "
                f"{_sized(quotas.max_bytes)}; delete versions and forget failed builds that are not needed, "
                "ask for samples to be deleted after a build, or have octet keys limit raise it."
            )

    def _unfinished(self, session: Session) -> int:
        query = sa.select(sa.func.count()).where(self._mine(), BuildRow.state.in_(UNFINISHED))
        return session.scalars(query.select_from(BuildRow)).one()

    def _held(self, session: Session) -> Iterator[str]:
        unfinished = sa.select(BuildRow.files).where(self._mine(), BuildRow.state.in_(UNFINISHED))
        published = sa.select(VersionRow.files).join(BuildRow, BuildRow.id == VersionRow.build_id)
        for query in (unfinished, published.where(self._mine())):
            for files in session.scalars(query):
                yield from files.values()
        yield from kept_uploads(session, self._mine())

    def _mine(self) -> sa.ColumnElement[bool]:
        return BuildRow.key_id == self._caller.key_id

    def _total_bytes(self, held: Iterable[str]) -> int:
        total = sum(self._files.values())
        for digest in set(held) - self._files.keys():
            # One that is lost takes no room.
            with contextlib.suppress(InvalidArtifactError):
                total += self._size_bytes(digest)
        return total


def _sized(size_bytes: int) -> str:
    return ByteSize(size_bytes).human_readable(decimal=True)
