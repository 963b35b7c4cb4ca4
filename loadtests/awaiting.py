"""For coroutines that want a batcher's answer: they wait for a future, which costs more than to be called back.

Inference does without; benchmarks and tests of the batcher alone do not mind.
"""

import asyncio

from engines.model.tensors import Array
from service.batching.batcher import Batcher
from service.monitoring.timeline import Timeline


class Awaiting:
    """Waits for `answer`, and has left once that is cancelled."""

    timeline: Timeline | None = None

    def __init__(self, *, gone: bool = False, request_id: bytes = b"") -> None:
        self.answer: asyncio.Future[dict[str, Array]] = asyncio.get_running_loop().create_future()
        self.request_id = request_id
        self._gone = gone

    def has_left(self) -> bool:
        return self._gone or self.answer.cancelled()

    def answered(self, outputs: dict[str, Array]) -> None:
        if not self.answer.done():
            self.answer.set_result(outputs)

    def failed(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def submit(
    batcher: Batcher,
    feeds: dict[str, Array],
    *,
    timeout_s: float | None = None,
    priority: int | None = None,
    gone: bool = False,
    request_id: bytes = b"",
) -> dict[str, Array]:
    """Has a batcher run the rows of `feeds`; the outputs, or what the caller failed with."""
    caller = Awaiting(gone=gone, request_id=request_id)
    batcher.enqueue(feeds, caller, timeout_s=timeout_s, priority=priority)
    return await caller.answer
