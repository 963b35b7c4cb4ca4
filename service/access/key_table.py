"""The keys as a server has them in memory: what every request is checked against."""

import hmac
import os
from collections.abc import Callable, Iterable

from service.access.caller import Caller
from service.access.keys import Key, Quotas, digest_of, handle_of
from service.access.scopes import EVERYTHING, Scope
from service.access.token_bucket import TokenBucket

ADMIN_ID = "admin"
"""Stands for the id of the key that the environment gives; no other key has one that is no hexadecimal number."""


class Entry:
    """A key as requests need it."""

    __slots__ = ("bucket", "caller", "digest", "key")

    def __init__(self, caller: Caller, digest: bytes, key: Key | None, bucket: TokenBucket | None) -> None:
        self.caller = caller
        self.digest = digest
        # None is the key of the environment, which neither expires nor is revoked.
        self.key = key
        # None is no limit.
        self.bucket = bucket


# What a key that nobody has is compared with, so that both take as long.
_NOBODY = os.urandom(32)


class KeyTable:
    """Looked up by id, then compared whole. Lives in one event loop."""

    def __init__(self, admin_key: str | None, *, clock_s: Callable[[], float]) -> None:
        """`admin_key` is one that has all scopes and is in no database."""
        self._clock_s = clock_s
        self._always: dict[bytes, Entry] = {}
        if admin_key is not None:
            caller = Caller(key_id=ADMIN_ID, name="OCTET_ADMIN_KEY", scopes=EVERYTHING, quotas=Quotas())
            text = admin_key.encode()
            self._always[handle_of(text)] = Entry(caller, digest_of(text), None, None)
        self._entries = dict(self._always)

    def __len__(self) -> int:
        return len(self._entries)

    def replace(self, keys: Iterable[Key]) -> None:
        """Takes over what the catalog says. What a key has used of its requests stays used."""
        entries = {key.id.encode(): self._entry(key) for key in keys}
        self._entries = entries | self._always

    def find(self, text: bytes) -> Entry | None:
        """The entry of this key, whatever its state; None where there is no such key."""
        entry = self._entries.get(handle_of(text))
        expected = _NOBODY if entry is None else entry.digest
        return entry if hmac.compare_digest(digest_of(text), expected) else None

    def of(self, key_id: str) -> Entry | None:
        """The entry of a key that was found before, if it is still there."""
        always = (entry for entry in self._always.values() if entry.caller.key_id == key_id)
        return self._entries.get(key_id.encode()) or next(always, None)

    def _entry(self, key: Key) -> Entry:
        # A key that may do everything need not be told each part.
        scopes = EVERYTHING if Scope.ADMIN in key.scopes else key.scopes
        caller = Caller(key_id=key.id, name=key.name, scopes=scopes, quotas=key.quotas)
        return Entry(caller, key.digest, key, self._bucket(key))

    def _bucket(self, key: Key) -> TokenBucket | None:
        per_s, earlier = key.quotas.requests_per_s, self._entries.get(key.id.encode())
        if per_s is None:
            return None
        if earlier is not None and earlier.bucket is not None and earlier.bucket.per_s == per_s:
            return earlier.bucket
        return TokenBucket(per_s, now_s=self._clock_s())
