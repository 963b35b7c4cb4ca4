from dataclasses import replace
from hmac import compare_digest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.key_table import ADMIN_ID, KeyTable
from service.access.keys import Key, Quotas, new_key
from service.access.scopes import EVERYTHING, Scope

ADMIN_KEY = "a" * 32


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def table(*keys: Key, admin_key: str | None = None) -> KeyTable:
    made = KeyTable(admin_key, clock_s=Clock())
    made.replace(keys)
    return made


def key(scope: Scope = Scope.INFER, **quotas: float) -> tuple[bytes, Key]:
    text, made = new_key("ci", [scope], Quotas(**quotas))  # type: ignore[arg-type] # by name
    return text.encode(), made


TEXT, KEY = key()


def test_a_key_is_found_by_its_text() -> None:
    other, another = key()
    found = table(KEY, another).find(TEXT)
    assert found is not None
    assert found.key == KEY
    assert found.caller.key_id == KEY.id
    assert table(another).find(TEXT) is None
    assert table(KEY).find(other) is None


@given(st.binary(max_size=120) | st.builds(lambda tail: TEXT[:19] + tail, st.binary(max_size=80)))
def test_nothing_else_opens(text: bytes) -> None:
    assert table(KEY, admin_key=ADMIN_KEY).find(text) is None


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_a_slip_in_any_place_does_not_open(place: int, change: int) -> None:
    changed = bytearray(TEXT)
    changed[place] ^= change
    assert table(KEY).find(bytes(changed)) is None


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT[:-1], b"octet_000000000000_" + TEXT[19:], b"", b"\xff"],
    ids=["good", "short", "unknown", "empty", "no text"],
)
def test_every_key_is_compared_in_constant_time_also_one_that_nobody_has(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    keys = table(KEY)
    monkeypatch.setattr("service.access.key_table.hmac.compare_digest", compare)
    keys.find(text)
    assert compared == [(32, 32)]


@pytest.mark.parametrize("given_key", [ADMIN_KEY, TEXT.decode()], ids=["any", "like a key"])
def test_the_key_of_the_environment_may_do_everything_and_is_in_no_catalog(given_key: str) -> None:
    keys = table(replace(KEY, revoked_at=1.0), admin_key=given_key)
    found = keys.find(given_key.encode())
    assert found is not None
    assert (found.key, found.caller.scopes, found.caller.key_id) == (None, EVERYTHING, ADMIN_ID)
    assert keys.of(ADMIN_ID) is found
    assert keys.find(given_key.encode() + b"a") is None


def test_admin_means_everything() -> None:
    text, made = key(Scope.ADMIN)
    found = table(made).find(text)
    assert found is not None
    assert found.caller.scopes == EVERYTHING


def test_what_was_used_of_a_quota_stays_used_until_it_changes() -> None:
    text, made = key(requests_per_s=1.0)
    keys = table(made)

    def wait_s() -> float:
        found = keys.find(text)
        assert found is not None
        assert found.bucket is not None
        return found.bucket.take(0.0)

    assert wait_s() == 0.0
    keys.replace([made])
    assert wait_s() > 0.0
    keys.replace([replace(made, quotas=Quotas(requests_per_s=2.0))])
    assert wait_s() == 0.0
    keys.replace([replace(made, quotas=Quotas())])
    found = keys.find(text)
    assert found is not None
    assert found.bucket is None
