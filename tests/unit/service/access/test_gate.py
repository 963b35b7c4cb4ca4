import time
from pathlib import Path
from typing import Any

import pytest

from service.access.caller import ANYBODY, LOCAL, caller_of
from service.access.gate import Gate
from service.access.keys import Key, Quotas, new_key
from service.access.refusals import Reason, Refusals
from service.access.scopes import EVERYTHING, Scope
from service.errors import KeyRefusedError, RequestQuotaError, ScopeError, ServiceError, StartError
from service.settings import Settings
from tests.unit.service.access.test_key_table import ADMIN_KEY, Clock

NOW = 1_000_000.0


def gate(tmp_path: Path, *keys: Key, clock: Clock | None = None, **settings: Any) -> Gate:
    made = Gate(Settings(home=tmp_path, **settings), Refusals(), clock_s=clock or Clock(), now=lambda: NOW)
    made.replace(keys)
    return made


def key(*scopes: Scope, quotas: Quotas | None = None, **changes: Any) -> tuple[str, Key]:
    text, made = new_key("ci", scopes or [Scope.INFER], quotas or Quotas())
    return text, Key(**{**vars(made), **changes})


def request(text: str | None = None, *, scheme: str = "Bearer") -> dict[str, Any]:
    headers = [(b"host", b"octet")]
    if text is not None:
        headers.append((b"authorization", f"{scheme} {text}".encode()))
    return {"path": "/v2/models/m/infer", "headers": headers, "client": ("10.0.0.7", 1)}


def refused(opened: Gate, scope: dict[str, Any], needed: Scope = Scope.INFER) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        opened.admit(scope, needed)
    assert "octet.caller" not in scope
    return caught.value


def test_without_keys_whoever_is_on_this_machine_may_do_everything(tmp_path: Path) -> None:
    scope = request()
    gate(tmp_path).admit(scope, Scope.ADMIN)
    assert caller_of(scope) is LOCAL


def test_with_the_first_key_everybody_needs_one(tmp_path: Path) -> None:
    opened, (text, made) = gate(tmp_path), key()
    opened.replace([made])
    error = refused(opened, request())
    assert isinstance(error, KeyRefusedError)
    assert error.challenge == 'Bearer realm="octet"'
    scope = request(text)
    opened.admit(scope, Scope.INFER)
    assert caller_of(scope).key_id == made.id
    assert set(caller_of(scope).scopes) == {Scope.INFER}


@pytest.mark.parametrize("changes", [{"revoked_at": NOW - 5}, {"expires_at": NOW - 5}])
def test_the_end_of_the_last_key_opens_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    text, made = key(**changes)
    opened = gate(tmp_path, made)
    assert isinstance(refused(opened, request()), KeyRefusedError)
    error = refused(opened, request(text))
    assert error.challenge == 'Bearer realm="octet", error="invalid_token"'
    assert "since 1970-01-12 13:46:35 UTC" in str(error)
    assert made.id in str(error)


def test_what_is_open_is_open_with_any_key(tmp_path: Path) -> None:
    opened = gate(tmp_path, key()[1])
    for scope in (request(), request("wrong")):
        opened.admit(scope, None)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_may_be_written_in_any_way(tmp_path: Path, scheme: str) -> None:
    text, made = key()
    gate(tmp_path, made).admit(request(text, scheme=scheme), Scope.INFER)


def test_other_credentials_are_no_key(tmp_path: Path) -> None:
    text, made = key()
    assert "none came" in str(refused(gate(tmp_path, made), request(text, scheme="Basic")))


def test_nothing_of_a_wrong_key_is_repeated(tmp_path: Path) -> None:
    text, made = key()
    slipped = f"{text[:-1]}x"
    error = refused(gate(tmp_path, made), request(slipped))
    assert f"of {len(text)} characters, is none of this octet's" in str(error)
    assert slipped[6:30] not in str(error)
    assert made.id not in str(error)


@pytest.mark.parametrize(
    ("has", "wants"),
    [
        (Scope.INFER, Scope.BUILD),
        (Scope.BUILD, Scope.INFER),
        (Scope.INFER, Scope.ADMIN),
        (Scope.BUILD, Scope.ADMIN),
    ],
)
def test_a_key_is_good_for_its_scopes_alone(tmp_path: Path, has: Scope, wants: Scope) -> None:
    text, made = key(has)
    error = refused(gate(tmp_path, made), request(text), wants)
    assert isinstance(error, ScopeError)
    assert f"has the scope {has} and this call needs {wants}" in str(error)
    assert error.challenge == f'Bearer realm="octet", error="insufficient_scope", scope="{wants}"'


@pytest.mark.parametrize("wants", Scope)
def test_administrators_may_do_everything(tmp_path: Path, wants: Scope) -> None:
    text, made = key(Scope.ADMIN)
    gate(tmp_path, made).admit(request(text), wants)
    gate(tmp_path, admin_key=ADMIN_KEY).admit(request(ADMIN_KEY), wants)


def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    clock, (text, made) = Clock(), key(quotas=Quotas(requests_per_s=0.25))
    opened = gate(tmp_path, made, clock=clock)
    opened.admit(request(text), Scope.INFER)
    clock.now_s = 0.5
    error = refused(opened, request(text))
    assert isinstance(error, RequestQuotaError)
    assert error.retry_after_s == 4
    assert "may send 0.25 requests a second to a server and has sent them" in str(error)
    clock.now_s += 4
    opened.admit(request(text), Scope.INFER)


def test_a_server_that_was_told_so_asks_nobody(tmp_path: Path) -> None:
    opened = gate(tmp_path, key()[1], host="0.0.0.0", no_auth=True)
    scope = request("wrong")
    opened.admit(scope, Scope.ADMIN)
    assert caller_of(scope) is ANYBODY
    opened.check_start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "octet.example"])
def test_a_wide_bind_without_keys_does_not_start_and_would_let_nobody_in(tmp_path: Path, host: str) -> None:
    opened = gate(tmp_path, host=host)
    with pytest.raises(StartError, match=rf"would listen on {host} .*octet keys create.*OCTET_NO_AUTH=1"):
        opened.check_start()
    refused(opened, request())


def test_a_wide_bind_starts_with_any_key(tmp_path: Path) -> None:
    gate(tmp_path, key()[1], host="0.0.0.0").check_start()
    gate(tmp_path, host="0.0.0.0", admin_key=ADMIN_KEY).check_start()
    # Nobody gets in by it, but somebody may make another while it runs.
    gate(tmp_path, key(revoked_at=1.0)[1], host="0.0.0.0").check_start()


def test_whose_answer_goes_on_is_let_in_until_the_key_ends(tmp_path: Path) -> None:
    text, made = key()
    opened = gate(tmp_path, made, admin_key=ADMIN_KEY)
    keyed, admin = request(text), request(ADMIN_KEY)
    opened.admit(keyed, Scope.INFER)
    opened.admit(admin, Scope.INFER)
    opened.replace([Key(**{**vars(made), "name": "renamed"})])
    assert opened.still_admits(caller_of(keyed))
    opened.replace([Key(**{**vars(made), "revoked_at": NOW})])
    assert not opened.still_admits(caller_of(keyed))
    opened.replace([])
    assert not opened.still_admits(caller_of(keyed))
    assert opened.still_admits(caller_of(admin))


def test_who_came_without_a_key_leaves_with_the_first_one(tmp_path: Path) -> None:
    opened = gate(tmp_path)
    assert opened.still_admits(LOCAL)
    opened.replace([key()[1]])
    assert not opened.still_admits(LOCAL)
    assert gate(tmp_path, no_auth=True).still_admits(ANYBODY)


def test_every_refusal_is_counted_by_its_reason(tmp_path: Path) -> None:
    clock, refusals = Clock(), Refusals()
    opened = Gate(Settings(home=tmp_path), refusals, clock_s=clock, now=lambda: NOW)
    good, slow = key(), key(quotas=Quotas(requests_per_s=1))
    expired, revoked = key(expires_at=1.0), key(revoked_at=1.0)
    opened.replace([made for _, made in (good, slow, expired, revoked)])
    opened.admit(request(slow[0]), Scope.INFER)
    refused(opened, request())
    refused(opened, request("x"))
    refused(opened, request(expired[0]))
    refused(opened, request(revoked[0]))
    refused(opened, request(good[0]), Scope.ADMIN)
    refused(opened, request(slow[0]))
    [family] = refusals.collect()
    assert {sample.labels["reason"]: sample.value for sample in family.samples} == dict.fromkeys(Reason, 1)


def test_the_real_clock_ends_keys(tmp_path: Path) -> None:
    opened = Gate(Settings(home=tmp_path), Refusals())
    text, made = key(expires_at=time.time() + 60)
    opened.replace([made])
    opened.admit(request(text), Scope.INFER)
    opened.replace([Key(**{**vars(made), "expires_at": time.time() - 1})])
    refused(opened, request(text))


def test_everything_is_every_scope() -> None:
    assert set(Scope) == EVERYTHING


def test_a_request_that_was_let_in_is_not_asked_again(tmp_path: Path) -> None:
    text, made = key(quotas=Quotas(requests_per_s=1))
    opened = gate(tmp_path, made)
    first = request(text)
    for _ in range(5):
        opened.admit(first, Scope.INFER)
    assert isinstance(refused(opened, request(text)), RequestQuotaError)
