"""Keeps a server's keys like those in the catalog."""

import asyncio
import logging

from service.access.audit import Action, key_changed
from service.access.gate import Gate
from service.access.key_records import KeyRecords
from service.access.keys import Key
from service.catalog.catalog import Catalog
from service.errors import UnavailableError
from service.processes.daemon_threads import in_daemon_thread

logger = logging.getLogger(__name__)

POLL_S = 0.5


class KeyFollower:
    """Looks at the catalog again and again, for the gate.

    By itself, not with the models: a key that was called in must not go on because many of them are being listed.
    """

    def __init__(self, catalog: Catalog, gate: Gate, *, poll_s: float = POLL_S) -> None:
        self._catalog = catalog
        self._records = KeyRecords(catalog)
        self._gate = gate
        self._poll_s = poll_s
        self._revision: int | None = None
        self._keys: dict[str, Key] = {}

    def begin(self) -> None:
        """Has the gate know the keys before the first request.

        Raises:
            CatalogUnavailableError: the database does not answer.
        """
        self._take_over(*self._read(), noticed=False)

    async def follow(self) -> None:
        """Goes on until it is cancelled; while the database is away, the keys stay as they are."""
        away = False
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                # In a thread of its own: uploads may have all of the pool's.
                revision, keys = await in_daemon_thread(self._read, name="octet-keys")
                self._take_over(revision, keys, noticed=True)
                away = False
            except UnavailableError as error:
                if not away:
                    logger.warning("%s Keys stay as they are until it does.", error)
                away = True
            except Exception:
                logger.exception("the keys could not be read; they stay as they are")

    def _read(self) -> tuple[int, list[Key] | None]:
        """The revision, which is read first, and all keys where it is another one than before."""
        revision = self._catalog.revision()
        return revision, None if revision == self._revision else self._records.all()

    def _take_over(self, revision: int, keys: list[Key] | None, *, noticed: bool) -> None:
        if keys is None:
            return
        self._gate.replace(keys)
        self._revision = revision
        earlier, self._keys = self._keys, {key.id: key for key in keys}
        if noticed:
            for key in keys:
                _tell(earlier.get(key.id), key)


def _tell(earlier: Key | None, key: Key) -> None:
    """Has the trail show what was done to a key elsewhere."""
    if earlier == key:
        return
    action = Action.LIMIT_KEY
    if earlier is None:
        action = Action.CREATE_KEY
    elif key.revoked_at != earlier.revoked_at:
        action = Action.REVOKE_KEY
    key_changed(action, key, by="octet keys")
