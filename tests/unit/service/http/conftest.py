from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """The loop that the server runs in; other tests use asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}
