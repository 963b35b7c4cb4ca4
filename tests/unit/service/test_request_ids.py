import contextvars
from typing import Any

import pytest

from service.monitoring import request_ids


def begun(*headers: tuple[bytes, bytes]) -> bytes:
    context = contextvars.copy_context()
    scope: dict[str, Any] = {"headers": headers}
    name = context.run(request_ids.begin, scope)
    assert context.run(request_ids.current) == name
    assert request_ids.of(scope) == name
    return name


@pytest.mark.parametrize("name", [b"a", b"7f3e-11", b"trace:1/2", b"x" * 128, b"me@host=1+2~3._"])
def test_a_client_s_own_name_is_kept(name: bytes) -> None:
    assert begun((b"host", b"octet"), (b"x-request-id", name)) == name


@pytest.mark.parametrize("name", [b"", b"x" * 129, b"two words", b'"quoted"', b"\xff", b"line\x1b[0m", b"{}"])
def test_a_name_that_could_spoil_a_log_is_replaced(name: bytes) -> None:
    made = begun((b"x-request-id", name))
    assert made != name
    assert request_ids._SANE.fullmatch(made)


def test_made_names_differ() -> None:
    assert len({begun() for _ in range(100)}) == 100


def test_outside_of_requests_there_is_none() -> None:
    assert contextvars.Context().run(request_ids.current) == b""


def test_what_was_no_request_gets_a_name_too() -> None:
    assert request_ids._SANE.fullmatch(request_ids.of({"method": "GET"}))
