import logging
from typing import Any

import pytest

from service.monitoring.observer import Observer


async def observed(caplog: pytest.LogCaptureFixture, *messages: dict[str, Any]) -> dict[str, Any]:
    """What the access log has of an answer made of these messages."""

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    scope = {"method": "GET", "path": "/x", "query_string": b"key=secret"}
    with caplog.at_level(logging.INFO, "service.monitoring.observer"):
        await Observer(access_log=True, timelines=False, spans=None).observe(answer, scope, receive, send)
    (record,) = caplog.records
    return vars(record)


async def test_an_answer_in_pieces_is_noted_once_with_all_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    noted = await observed(
        caplog,
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body", "body": b"abc", "more_body": True},
        {"type": "http.response.body", "body": b"de"},
    )
    assert (noted["message"], noted["status"], noted["answer_bytes"]) == ("GET /x 200", 200, 5)
    assert noted["duration_ms"] >= 0


async def test_a_client_that_left_before_its_answer_is_said_to_have_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    noted = await observed(caplog)
    assert (noted["message"], noted["status"]) == ("GET /x left", None)
