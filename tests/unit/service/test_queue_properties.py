"""What holds of the queue and of the batcher in front of it whatever callers do."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.model.tensors import Array
from engines.options import Batching
from loadtests.awaiting import Awaiting, submit
from service.batching.batch_sizes import BatchRules
from service.batching.batcher import Batcher
from service.batching.queue import (
    LOWEST_PRIORITY,
    PRIORITY_STEP_S,
    DepartedError,
    Part,
    RowQueue,
    Waiting,
    turn_s,
)
from service.errors import DeadlineError
from service.monitoring.metrics import Metrics
from tests.unit.service.callers import answer_of, nothing
from tests.unit.service.echo_engine import EchoEngine

MOST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request, and what becomes of it while it waits."""

    rows: int
    shape: int
    priority: int | None
    # Since the arrival before it.
    after_s: float
    fate: str
    # Batches that are formed before the next arrival.
    takes: int


arrivals = st.lists(
    st.builds(
        Arrival,
        rows=st.integers(1, MOST_ROWS),
        shape=st.integers(1, 3),
        priority=st.none() | st.integers(1, 12),
        after_s=st.floats(0, 2.5),
        fate=st.sampled_from(["stays", "stays", "stays", "leaves", "cancels", "times out"]),
        takes=st.sampled_from([0, 0, 0, 1, 2]),
    ),
    max_size=40,
)


def admitted(arrival: Arrival, now_s: float) -> Waiting:
    return Waiting(
        feeds={"x": np.zeros((arrival.rows, arrival.shape), np.float32)},
        rows=arrival.rows,
        arrived_s=now_s,
        turn_s=turn_s(now_s, arrival.priority),
        deadline_s=now_s + 30,
        caller=Awaiting(gone=arrival.fate == "leaves"),
        on_settled=nothing,
    )


def befall(request: Waiting, fate: str) -> None:
    if fate == "cancels":
        answer_of(request).cancel()
    elif fate == "times out":
        request.fail(DeadlineError("late"))


async def formed(
    story: list[Arrival], check: Callable[[list[Part], list[Waiting]], None]
) -> tuple[list[Waiting], list[list[Part]]]:
    """Plays a story to its end; `check` sees each batch and who waited when it was formed."""
    queue, now_s, batches = RowQueue(), 0.0, []
    requests: list[Waiting] = []
    waiting: list[Waiting] = []

    def take() -> None:
        before = [request for request in waiting if not request.abandoned()]
        batch = queue.take(MOST_ROWS)
        check(batch, before)
        batches.append(batch)
        for part in batch:
            waiting.remove(part.request)

    for arrival in story:
        now_s += arrival.after_s
        request = admitted(arrival, now_s)
        requests.append(request)
        waiting.append(request)
        queue.push(((arrival.shape,),), Part(request=request, start=0, rows=arrival.rows))
        befall(request, arrival.fate)
        for _ in range(arrival.takes):
            take()
    while queue.rows:
        take()
    assert queue.next_shapes() is None
    for request in requests:
        if answer_of(request).done() and not answer_of(request).cancelled():
            answer_of(request).exception()
    return requests, batches


@given(arrivals)
@settings(max_examples=150, deadline=None)
def test_everybody_who_stays_is_in_exactly_one_batch_and_nobody_else_is(story: list[Arrival]) -> None:
    requests, batches = asyncio.run(formed(story, lambda batch, before: None))
    taken = [part.request for batch in batches for part in batch]
    stayed = [request for request, arrival in zip(requests, story, strict=True) if arrival.fate == "stays"]
    assert len(taken) == len(set(taken))
    assert set(taken) == set(stayed)


@given(arrivals)
@settings(max_examples=150, deadline=None)
def test_batches_have_one_shape_and_keep_the_cap(story: list[Arrival]) -> None:
    _, batches = asyncio.run(formed(story, lambda batch, before: None))
    for batch in batches:
        assert sum(part.rows for part in batch) <= MOST_ROWS
        assert len({part.request.feeds["x"].shape[1:] for part in batch}) <= 1


@given(arrivals)
@settings(max_examples=150, deadline=None)
def test_the_earliest_turn_is_in_the_next_batch_and_turns_keep_their_order(story: list[Arrival]) -> None:
    def check(batch: list[Part], before: list[Waiting]) -> None:
        turns = [part.request.turn_s for part in batch]
        assert turns == sorted(turns)
        if before:
            assert turns[0] == min(request.turn_s for request in before)
            shape = batch[0].request.feeds["x"].shape[1:]
            mates = {part.request for part in batch}
            left = [r for r in before if r not in mates and r.feeds["x"].shape[1:] == shape]
            assert all(request.turn_s >= turns[-1] for request in left)

    asyncio.run(formed(story, check))


@given(arrivals)
@settings(max_examples=150, deadline=None)
def test_nobody_is_overtaken_by_what_came_later_than_the_priorities_allow(story: list[Arrival]) -> None:
    def check(batch: list[Part], before: list[Waiting]) -> None:
        if batch:
            served_s = batch[0].request.arrived_s
            longest_s = (LOWEST_PRIORITY - 1) * PRIORITY_STEP_S
            assert all(served_s <= request.arrived_s + longest_s for request in before)

    asyncio.run(formed(story, check))


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one caller of a batcher does."""

    rows: int
    priority: int | None
    fate: str


calls = st.lists(
    st.builds(
        Call,
        rows=st.integers(1, 3 * MOST_ROWS),
        priority=st.none() | st.integers(1, 9),
        fate=st.sampled_from(["stays", "stays", "leaves", "cancels", "times out"]),
    ),
    min_size=1,
    max_size=25,
)


@given(calls, st.sampled_from([(1, 2, 3, 4, 5, 6, 7, 8), (4, 8), (8,)]))
@settings(max_examples=40, deadline=None)
def test_every_caller_gets_its_own_rows_once_or_a_reason(story: list[Call], sizes: tuple[int, ...]) -> None:
    asyncio.run(served(story, sizes))


async def served(story: list[Call], sizes: tuple[int, ...]) -> None:
    engine = EchoEngine()
    batcher = Batcher(
        engine,
        limits=Batching(max_batch_rows=MOST_ROWS),
        rules=BatchRules(batchable=True, sizes=sizes),
        metrics=Metrics().of("m", "1"),
    )
    batcher.start()
    engine.gate.clear()
    sent = [own_rows(number, call.rows) for number, call in enumerate(story)]
    tasks = [
        asyncio.create_task(
            submit(
                batcher,
                feeds,
                timeout_s=0.0 if call.fate == "times out" else None,
                priority=call.priority,
                gone=call.fate == "leaves",
            )
        )
        for feeds, call in zip(sent, story, strict=True)
    ]
    await asyncio.sleep(0)
    for task, call in zip(tasks, story, strict=True):
        if call.fate == "cancels":
            task.cancel()
    await asyncio.sleep(0.001)
    engine.gate.set()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
    assert batcher.queue_rows == 0
    assert batcher.inflight_requests == 0
    for answer, feeds, call in zip(answers, sent, story, strict=True):
        if isinstance(answer, dict):
            assert np.array_equal(answer["double"], 2 * feeds["x"])
        else:
            allowed = {"leaves": DepartedError, "cancels": asyncio.CancelledError, "times out": DeadlineError}
            assert isinstance(answer, allowed[call.fate])


def own_rows(number: int, rows: int) -> dict[str, Array]:
    """Rows that no other caller sends."""
    return {"x": (100 * number + np.arange(rows, dtype=np.float32))[:, None].repeat(2, axis=1)}
