"""Dynamic batching in front of one loaded engine.

The event loop owns the queue; the engine runs in a thread of its own, or where that would cost more than it gains
(`service.batching.quickness`) in the loop. An idle engine gets at once what is there, or as much of it as evens batches
out (`BatchRules.rows_now`); while it runs, rows gather, and a batch that is full is written into a second set of
buffers, so that the engine goes on without a pause. Callers are called back: one that leaves touches no batch mate.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

from engines.errors import EngineRunError
from engines.model.tensors import Array
from engines.options import Batching
from engines.runtimes.base import Engine
from service.batching.admission import Admission
from service.batching.batch import Batch, note_run, shares, written
from service.batching.batch_sizes import BatchRules
from service.batching.device import Device, Turn
from service.batching.queue import Caller, Part, RowQueue, Waiting, turn_s
from service.batching.quickness import Quickness
from service.errors import DeadlineError, NotReadyError
from service.monitoring.metrics import VersionMetrics

logger = logging.getLogger(__name__)

_LEAVING_S = 30.0
"""How long an engine that is taken out may take to come back from a batch of which nobody waits for the answers."""


class Batcher:
    """Takes requests for one engine, runs them in batches and gives every caller its own rows back.

    Lives in one event loop; `start` must run in it. It owns the engine and closes it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Batching,
        rules: BatchRules,
        metrics: VersionMetrics,
        device: Device | None = None,
    ) -> None:
        """`device` is what the engine shares with others; None is a device of its own."""
        self._engine = engine
        self._limits = limits
        self._limit_s = limits.timeout_ms / 1e3
        self._rules = rules
        self._metrics = metrics
        self._device = device or Device()
        self._turn = Turn(wake=self._flush)
        self._admission = Admission(limits, rules)
        self._quickness = Quickness()
        self._queue = RowQueue()
        # Admitted and not settled.
        self._open: set[Waiting] = set()
        # Set with each that is settled once the batcher closes.
        self._settled = asyncio.Event()
        # Batches that were handed over and have not come back: one for each lane held, and at most one ahead.
        self._running = 0
        self._recent: deque[int] = deque(maxlen=self._device.lanes)  # the rows of the last ones
        self._closing: asyncio.Task[None] | None = None
        self._flush_planned = False
        self._delay: asyncio.TimerHandle | None = None
        # The timer for deadlines, and the earliest, at which it is set.
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_s = math.inf
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name="octet-engine", daemon=True)
            for _ in range(self._device.lanes)
        ]
        self._loop: asyncio.AbstractEventLoop

    @property
    def queue_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    @property
    def inflight_requests(self) -> int:
        """Requests admitted and not yet answered."""
        return len(self._open)

    def start(self) -> None:
        """Begins to run batches."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    def enqueue(
        self,
        feeds: dict[str, Array],
        caller: Caller,
        *,
        timeout_s: float | None = None,
        priority: int | None = None,
    ) -> None:
        """Has the rows of `feeds` run and `caller` told what became of them; not before this returns.

        `feeds` has one C-contiguous array per input, in the model's order, rows along axis 0. `priority` is 1 for
        the highest, see `service.batching.queue.turn_s`. A request whose caller has left is dropped when its batch
        forms.

        The caller is called back, not awaited: a future, and the task that waits for it, cost as much as all else
        that batching does for a request.

        Raises:
            BadRequestError: the inputs differ in rows, or the engine does not take that many.
            TooLargeError: more rows than the queue ever holds.
            QueueFullError: no room for these rows now.
            NotReadyError: the engine is being taken out.

        The caller fails with:
            DeadlineError: not answered in time.
            EngineRunError: the engine failed on the batch.
            NotReadyError: the engine was taken out.
            DepartedError: the caller has left.
        """
        rows = self._admission.rows_of(feeds)
        if self._closing is not None:
            raise NotReadyError("the model is being unloaded; send the request again.")
        limit_s = self._limit_s if timeout_s is None else min(timeout_s, self._limit_s)
        self._admission.check_room(rows, self._queue.rows, limit_s)
        now_s = time.perf_counter()
        request = Waiting(
            feeds=feeds,
            rows=rows,
            arrived_s=now_s,
            turn_s=turn_s(now_s, priority),
            deadline_s=now_s + limit_s,
            caller=caller,
            on_settled=self._on_settled,
        )
        if caller.timeline is not None:
            caller.timeline.queued_s = now_s
        self._push(request)
        self._open.add(request)
        self._watch_deadline(request.deadline_s)

    async def close(self, *, drain_s: float | None = None) -> None:
        """Answers what was admitted, then ends the threads and closes the engine. Idempotent.

        New requests get NotReadyError, and so does what is still waiting after `drain_s`. Without that nothing is cut
        off: whatever was admitted has a deadline of its own.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(drain_s))
        await asyncio.shield(self._closing)

    async def _close(self, drain_s: float | None) -> None:
        if self._threads[0].ident is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_settled(), drain_s)
            for part in self._queue.drain():
                part.request.fail(NotReadyError("the model is being unloaded; send the request again."))
            for _ in self._threads:
                self._batches.put(None)
            await asyncio.to_thread(self._join, time.monotonic() + _LEAVING_S)
        for timer in (self._delay, self._sweep):
            if timer is not None:
                timer.cancel()
        self._device.leave(self._turn)
        if any(thread.is_alive() for thread in self._threads):
            logger.error(
                "an engine has not come back after %.0f s; its memory stays taken",
                _LEAVING_S,
                extra=self._concerned(),
            )
            return
        await asyncio.to_thread(self._engine.close)

    async def _all_settled(self) -> None:
        while self._open:
            self._settled.clear()
            await self._settled.wait()

    def _on_settled(self, request: Waiting) -> None:
        self._open.discard(request)
        if self._closing is not None:
            self._settled.set()

    def _join(self, until_s: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _push(self, request: Waiting) -> None:
        """Puts a request into the queue, an oversize one in parts, and has the engine woken if it is idle.

        Waking waits for the end of the loop's turn: requests that came in together go together.
        """
        batchable, most = self._rules.batchable, self._rules.max_rows
        shapes = self._rules.item_shapes(request.feeds)
        if not batchable or request.rows <= most:
            self._queue.push(shapes, Part(request=request, start=0, rows=request.rows))
        else:
            request.parts = math.ceil(request.rows / most)
            for start in range(0, request.rows, most):
                self._queue.push(
                    shapes, Part(request=request, start=start, rows=min(most, request.rows - start))
                )
        if not self._flush_planned and self._running <= self._turn.held:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hands batches to the engine: at once for a free lane, a full one ahead while all are taken."""
        self._flush_planned = False
        most = self._rules.max_rows if self._rules.batchable else 1
        while self._queue.rows and self._running <= self._turn.held:
            full = self._queue.fills(most)
            if not full and self._may_wait():
                return
            if not self._device.take(self._turn) and not (full and self._device.has_all(self._turn)):
                return
            self._dispatch(most)

    def _may_wait(self) -> bool:
        """Whether the oldest row may wait longer for company; if so, a timer ends the wait."""
        delay_s = self._limits.max_queue_delay_us / 1e6
        if not delay_s or self._running:
            return False
        left_s = self._queue.oldest_s() + delay_s - time.perf_counter()
        if left_s <= 0:
            return False
        if self._delay is not None:
            self._delay.cancel()
        self._delay = self._loop.call_later(left_s, self._flush)
        return True

    def _dispatch(self, most: int) -> None:
        """Forms one batch, writes it into a slot and hands it over."""
        enough = self._rules.rows_now(waiting := self._queue.next_rows(), self._recent)
        parts = self._queue.take(most, enough)
        if parts:
            try:
                slot = written(self._engine, self._rules, parts)
            except Exception as error:
                logger.exception("a batch could not be written", extra=self._concerned(parts))
                self._fail_all(parts, error)
            else:
                left_others = self._queue.rows > 0 and enough == min(waiting, self._rules.max_rows)
                self._start(Batch(parts=parts, slot=slot, left_others=left_others))
        if self._running < self._turn.held:
            self._device.give_back(self._turn, 0.0, wants=False)

    def _start(self, batch: Batch) -> None:
        """Has a batch run: in the engine's thread, or where it is quick and nothing else is in the engine, here."""
        self._recent.append(batch.rows)
        self._running += 1
        # A GPU's context belongs to the threads that made it theirs.
        if self._running == 1 and not self._engine.on_gpu and self._quickness.fits_the_loop(batch.shapes):
            batch.run()
            # Not at once: it would call back here, once for each batch that waits.
            self._loop.call_soon(self._finish, batch)
        else:
            self._batches.put(batch)

    def _work(self) -> None:
        """A thread of the engine: runs what it is handed, in order, until it is handed None."""
        while (batch := self._batches.get()) is not None:
            batch.run()
            self._loop.call_soon_threadsafe(self._finish, batch)
            # Until the next one comes, which may be long, this would keep its requests and their connections.
            del batch

    def _finish(self, batch: Batch) -> None:
        """Back in the loop: the next batch first, then the answers of this one."""
        self._running -= 1
        self._quickness.learn(batch.shapes, batch.ended_s - batch.started_s)
        self._engine.release(batch.slot)
        self._admission.learn(batch)
        compute_s = batch.ended_s - batch.started_s
        if self._running < self._turn.held:
            self._device.give_back(self._turn, compute_s, wants=self._queue.rows > 0)
        else:
            self._device.charge(self._turn, compute_s)
        self._flush()
        if not self._running:
            # Whoever comes next does not come because of these.
            self._recent.clear()
        self._count(batch, compute_s)
        if batch.outputs is None:
            self._fail_all(batch.parts, batch.taken_error())
            return
        for part, outputs in shares(self._rules, batch.parts, batch.outputs):
            try:
                part.request.answer_part(part, outputs)
            except Exception:
                # Of this caller alone; its mates in the batch shall have theirs.
                logger.exception("an answer could not be handed over", extra=self._concerned([part]))

    def _count(self, batch: Batch, compute_s: float) -> None:
        metrics = self._metrics
        metrics.compute_seconds.observe(compute_s)
        metrics.batch_rows.observe(batch.rows)
        note_run(batch)
        if batch.outputs is None:
            return
        metrics.statistics.executions += 1
        for part in batch.parts:
            if part.start == 0:
                metrics.queue_seconds.observe(batch.started_s - part.request.arrived_s)
                metrics.statistics.compute.add(compute_s)

    def _fail_all(self, parts: list[Part], error: Exception | None) -> None:
        logger.error(
            "the engine failed on a batch of %d requests",
            len(parts),
            exc_info=error,
            extra=self._concerned(parts),
        )
        text = str(error) if isinstance(error, EngineRunError) else f"the engine failed: {error}"
        for part in parts:
            part.request.fail(EngineRunError(text))

    def _concerned(self, parts: Iterable[Part] = ()) -> dict[str, Any]:
        """Whom a log line is about."""
        names = [part.request.caller.request_id.decode() for part in parts]
        return {"model": self._metrics.model, "version": self._metrics.version, "request_ids": names}

    def _watch_deadline(self, deadline_s: float) -> None:
        """One timer for all requests, at the earliest deadline: a timer each would cost too much."""
        if deadline_s >= self._sweep_s:
            return
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_s = deadline_s
        self._sweep = self._loop.call_at(self._loop.time() + deadline_s - time.perf_counter(), self._expire)

    def _expire(self) -> None:
        self._sweep, self._sweep_s = None, math.inf
        now_s = time.perf_counter()
        # A copy: what is settled is taken out.
        for request in list(self._open):
            if request.deadline_s <= now_s:
                waited_ms = (now_s - request.arrived_s) * 1e3
                request.fail(DeadlineError(f"no answer within {waited_ms:.0f} ms; send fewer at a time."))
        if self._open:
            self._watch_deadline(min(request.deadline_s for request in self._open))
