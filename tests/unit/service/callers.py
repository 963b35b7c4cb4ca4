"""What tests know of a batcher's callers."""

import asyncio
from typing import cast

from engines.model.tensors import Array
from loadtests.awaiting import Awaiting
from service.batching.queue import Waiting


def answer_of(request: Waiting) -> "asyncio.Future[dict[str, Array]]":
    """What the caller of a request waits for."""
    return cast("Awaiting", request.caller).answer


def nothing(_: object) -> None:
    """For who has to be told of nothing."""
