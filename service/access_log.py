"""A line for every answer, where `OCTET_ACCESS_LOG` asks for it."""

import logging
import time

from starlette.types import Message, Scope, Send

logger = logging.getLogger(__name__)


def noted(scope: Scope, send: Send) -> Send:
    """`send`, which logs the answer once its last byte is on its way. Queries are left out: they may hold keys."""
    started_s = time.perf_counter()
    status, size = 0, 0

    async def noting(message: Message) -> None:
        nonlocal status, size
        await send(message)
        if message["type"] == "http.response.start":
            status = message["status"]
            return
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            logger.info(
                "%s %s %d",
                scope["method"],
                scope["path"],
                status,
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_ms": round((time.perf_counter() - started_s) * 1e3, 3),
                    "answer_bytes": size,
                },
            )

    return noting
