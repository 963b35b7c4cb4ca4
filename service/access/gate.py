"""The one place where a request is let in or not, before anything else looks at it."""

import math
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, NoReturn

from service.access.caller import ANYBODY, LOCAL, Caller, is_noted, note
from service.access.key_table import Entry, KeyTable
from service.access.keys import Key, KeyState
from service.access.refusals import Reason, Refusals
from service.access.scopes import Scope
from service.errors import KeyRefusedError, RequestQuotaError, ScopeError, ServiceError, StartError
from service.monitoring import request_ids
from service.settings import Settings, is_loopback

_HEADER = b"authorization"
_SCHEME = b"bearer "
_REALM = 'Bearer realm="octet"'
_REMEDY = "send one that counts in the header Authorization: Bearer octet_…; octet keys create makes one."
_REASONS = {KeyState.EXPIRED: Reason.EXPIRED, KeyState.REVOKED: Reason.REVOKED}


class Gate:
    """Lets requests in by their keys, out of memory alone. Lives in one event loop.

    Keys are asked for as soon as there is one, revoked or not: the last one's end opens nothing. A server that others
    reach asks for them in any case, and one that was told not to never does.
    """

    def __init__(
        self,
        settings: Settings,
        refusals: Refusals,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`clock_s` never goes back; `now` is in seconds since the epoch."""
        admin_key = settings.admin_key
        self._table = KeyTable(None if admin_key is None else admin_key.get_secret_value(), clock_s=clock_s)
        self._no_auth = settings.no_auth
        self._is_wide = not is_loopback(settings.host)
        self._host, self._port = settings.host, settings.port
        self._refusals = refusals
        self._clock_s, self._now = clock_s, now
        self.asks = self._must_ask()

    def replace(self, keys: Iterable[Key]) -> None:
        """Takes over what the catalog says."""
        self._table.replace(keys)
        self.asks = self._must_ask()

    def check_start(self) -> None:
        """Refuses to begin where others would reach a server without keys.

        Raises:
            StartError: they would, and nobody said that this is meant.
        """
        if self._is_wide and not self._no_auth and not len(self._table):
            raise StartError(
                f"octet would listen on {self._host} and there are no keys, so nobody could use port {self._port}, or "
                "everybody; make one with octet keys create, set OCTET_ADMIN_KEY, listen on 127.0.0.1, or say "
                "that whoever reaches it may do everything: --no-auth (OCTET_NO_AUTH=1)."
            )

    def admit(self, scope: MutableMapping[str, Any], needed: Scope | None) -> None:
        """Lets the request of an ASGI scope in, and notes in it who the caller is; once, however often it is asked.

        Raises:
            KeyRefusedError: no key came with it, or one that does not count.
            RequestQuotaError: its key has sent too many requests.
            ScopeError: its key has not got the scope `needed`.
        """
        if is_noted(scope):
            return
        if not self.asks:
            note(scope, ANYBODY if self._no_auth else LOCAL)
            return
        if needed is None:
            return
        entry = self._entry(scope)
        if entry.key is not None and (state := entry.key.state(self._now())) is not KeyState.ACTIVE:
            self._refuse_state(scope, entry.key, state)
        if entry.bucket is not None and (wait_s := entry.bucket.take(self._clock_s())):
            self._refuse_rate(scope, entry.caller, wait_s)
        if needed not in entry.caller.scopes:
            self._refuse_scope(scope, entry.caller, needed)
        note(scope, entry.caller)

    def still_admits(self, caller: Caller) -> bool:
        """Whether one who was let in earlier, and whose answer goes on, still would be."""
        if caller.key_id is None or not self.asks:
            return not self.asks
        entry = self._table.of(caller.key_id)
        return entry is not None and (entry.key is None or entry.key.state(self._now()) is KeyState.ACTIVE)

    def _must_ask(self) -> bool:
        return not self._no_auth and (self._is_wide or len(self._table) > 0)

    def _entry(self, scope: MutableMapping[str, Any]) -> Entry:
        """The entry of the key that came with a request."""
        text = _sent(scope["headers"])
        if text is None:
            error = KeyRefusedError(f"this call needs an API key and none came; {_REMEDY}")
            self._refuse(scope, Reason.MISSING, error)
        entry = self._table.find(text)
        if entry is None:
            # Not a byte of it: it may be a good one with a slip.
            error = KeyRefusedError(
                f"the key that came, of {len(text)} characters, is none of this octet's; {_REMEDY}"
            )
            self._refuse(scope, Reason.UNKNOWN, error)
        return entry

    def _refuse_state(self, scope: MutableMapping[str, Any], key: Key, state: KeyState) -> NoReturn:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(key.revoked_at or key.expires_at))
        error = KeyRefusedError(f"key {key.id} ({key.name}) is {state} since {since} UTC; {_REMEDY}")
        self._refuse(scope, _REASONS[state], error, key_id=key.id)

    def _refuse_rate(self, scope: MutableMapping[str, Any], caller: Caller, wait_s: float) -> NoReturn:
        error = RequestQuotaError(
            f"key {caller.key_id} ({caller.name}) may send {caller.quotas.requests_per_s:g} requests a second to a "
            f"server and has sent them; send this one again in {wait_s:.2g} s."
        )
        error.retry_after_s = max(1, math.ceil(wait_s))
        self._refuse(scope, Reason.RATE, error, key_id=caller.key_id)

    def _refuse_scope(self, scope: MutableMapping[str, Any], caller: Caller, needed: Scope) -> NoReturn:
        has = ", ".join(sorted(caller.scopes))
        error = ScopeError(
            f"key {caller.key_id} ({caller.name}) has the scope {has} and this call needs {needed}; "
            "send a key that has it."
        )
        error.challenge = f'{_REALM}, error="insufficient_scope", scope="{needed}"'
        self._refuse(scope, Reason.SCOPE, error, key_id=caller.key_id)

    def _refuse(
        self,
        scope: MutableMapping[str, Any],
        reason: Reason,
        error: ServiceError,
        *,
        key_id: str | None = None,
    ) -> NoReturn:
        if isinstance(error, KeyRefusedError):
            # RFC 6750: who sent no key is told no error but that one is wanted.
            error.challenge = _REALM if reason is Reason.MISSING else f'{_REALM}, error="invalid_token"'
        client, _ = scope.get("client") or (None, 0)
        # Named here: a request that is begun without a task has no context of its own.
        request_id = request_ids.of(scope).decode()
        self._refusals.note(reason, request_id=request_id, key_id=key_id, client=client, path=scope["path"])
        raise error


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key among the headers of a request; None where there is none, or another kind of credentials."""
    for name, value in headers:
        if name == _HEADER:
            return value[len(_SCHEME) :].strip() if value[: len(_SCHEME)].lower() == _SCHEME else None
    return None
