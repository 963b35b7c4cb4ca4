import hashlib
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import Key, KeyState, Quotas, handle_of, new_key
from service.access.scopes import Scope
from service.errors import BadRequestError


def made() -> tuple[str, Key]:
    return new_key("ci", [Scope.INFER], Quotas())


def test_a_key_is_a_prefix_an_id_and_256_random_bits() -> None:
    text, key = made()
    assert re.fullmatch(rf"octet_{key.id}_[0-9a-f]{{64}}", text)
    assert handle_of(text.encode()) == key.id.encode()
    other, another = made()
    assert (other, another.id) != (text, key.id)
    assert other[-64:] != text[-64:]
    # Of 64 random digits, one that is missing is rare, and six of them are no accident.
    assert len(set(text[-64:])) > 10


def test_what_is_kept_of_a_key_is_its_hash() -> None:
    text, key = made()
    assert key.digest == hashlib.sha256(text.encode()).digest()
    assert text[-64:] not in repr(key)


@given(st.binary(max_size=200))
def test_whatever_is_sent_has_a_place_for_an_id(text: bytes) -> None:
    assert len(handle_of(text)) <= 12


@pytest.mark.parametrize("name", ["", " ci", "-", "a\nb", "\x1b[31m", "é", "a" * 64])
def test_a_name_that_could_forge_a_line_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError, match="cannot be a key's name; use 1 to 63"):
        new_key(name, [Scope.INFER], Quotas())


def test_a_key_without_a_scope_is_refused() -> None:
    with pytest.raises(BadRequestError, match="give it one or more of infer, build, admin"):
        new_key("ci", [], Quotas())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests_per_s", float("nan")),
        ("requests_per_s", float("inf")),
        ("requests_per_s", -1.0),
        ("requests_per_s", 0.0),
        ("max_builds", 0),
        ("max_builds", 1 << 31),
        ("max_bytes", 1 << 63),
    ],
)
def test_numbers_that_are_no_limits_are_refused(field: str, value: float) -> None:
    with pytest.raises(BadRequestError, match=f"the quota {field} cannot be {value}"):
        Quotas(**{field: value})  # type: ignore[arg-type] # by name


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "state"),
    [
        (None, None, KeyState.ACTIVE),
        (100.5, None, KeyState.ACTIVE),
        (100.0, None, KeyState.EXPIRED),
        (None, 200.0, KeyState.REVOKED),
        (50.0, 1.0, KeyState.REVOKED),
    ],
)
def test_a_key_counts_until_it_expires_or_is_revoked(
    expires_at: float | None, revoked_at: float | None, state: KeyState
) -> None:
    _, key = made()
    # Revoked at a time that is still to come by this clock: somebody else's is ahead.
    assert replace(key, expires_at=expires_at, revoked_at=revoked_at).state(100.0) is state
