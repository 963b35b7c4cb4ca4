import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineRunError
from engines.model.tensors import Array
from engines.options import Batching
from engines.proof.padding import Padding
from loadtests.awaiting import Awaiting, submit
from service.batching import quickness
from service.batching.admission import Admission
from service.batching.batch_sizes import BatchRules
from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.queue import DepartedError
from service.errors import BadRequestError, DeadlineError, NotReadyError, QueueFullError, TooLargeError
from service.monitoring.metrics import Metrics
from tests.unit.service.echo_engine import POISON, EchoEngine

PADDING = Padding(mask="x", inputs={"x": 1}, outputs={"double": 1}, longest=8)


@contextlib.asynccontextmanager
async def batching(
    engine: EchoEngine,
    *,
    sizes: tuple[int, ...] = tuple(range(1, 9)),
    batchable: bool = True,
    metrics: Metrics | None = None,
    device: Device | None = None,
    lengths: tuple[int, ...] = (),
    times_s: tuple[float, ...] = (),
    **limits: int,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        engine,
        limits=Batching(**{"max_batch_rows": sizes[-1], **limits}),
        rules=BatchRules(
            batchable=batchable,
            sizes=sizes,
            padding=PADDING if lengths else None,
            lengths=lengths,
            times_s=times_s,
        ),
        metrics=(metrics or Metrics()).of("m", "1"),
        device=device,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        engine.gate.set()
        await batcher.close()


def rows(*values: float, items: int = 2) -> dict[str, Array]:
    """One row per value, every number in it that value."""
    return {"x": np.repeat(np.array(values, np.float32)[:, None], items, axis=1)}


def firsts(outputs: dict[str, Array]) -> list[float]:
    return [float(value) for value in outputs["first"][:, 0]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells when another task has come this far
            await asyncio.sleep(0)


async def busy(engine: EchoEngine, batcher: Batcher) -> "asyncio.Task[dict[str, Array]]":
    """Has the engine run one row until its gate opens."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(submit(batcher, rows(1000)))
    await until(engine.entered.is_set)
    return task


def submitted(batcher: Batcher, *values: float) -> "asyncio.Task[dict[str, Array]]":
    return asyncio.create_task(submit(batcher, rows(*values)))


async def test_a_quick_engine_is_run_in_the_loop_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickness, "QUICK_S", 10.0)
    engine = EchoEngine()
    async with batching(engine) as batcher:
        for number in range(quickness.LEAST_RUNS + 3):
            assert firsts(await submit(batcher, rows(float(number)))) == [number]
    loop = threading.get_ident()
    assert loop not in engine.threads[: quickness.LEAST_RUNS]
    assert engine.threads[quickness.LEAST_RUNS :] == [loop] * 3


async def test_an_engine_that_is_run_in_the_loop_fails_its_batch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quickness, "QUICK_S", 10.0)
    monkeypatch.setattr(quickness, "LEAST_RUNS", 1)
    engine = EchoEngine()
    async with batching(engine, sizes=(1,)) as batcher:
        await submit(batcher, rows(1))
        good, bad, also_good = (submitted(batcher, value) for value in (2, POISON, 3))
        with pytest.raises(EngineRunError, match="poisoned"):
            await bad
        assert firsts(await good) + firsts(await also_good) == [2, 3]
    assert threading.get_ident() in engine.threads


async def test_a_gpus_engine_is_never_run_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickness, "QUICK_S", 10.0)
    monkeypatch.setattr(quickness, "LEAST_RUNS", 1)
    engine = EchoEngine()
    engine.on_gpu = True
    async with batching(engine) as batcher:
        for number in range(4):
            await submit(batcher, rows(float(number)))
    assert threading.get_ident() not in engine.threads


async def test_gives_a_request_its_rows_back() -> None:
    async with batching(EchoEngine()) as batcher:
        outputs = await submit(batcher, rows(3, 5))
    assert outputs["double"].tolist() == [[6, 6], [10, 10]]
    assert firsts(outputs) == [3, 5]


async def test_an_idle_engine_runs_what_came_in_together_as_one_batch() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        answers = await asyncio.gather(*(submit(batcher, rows(value)) for value in range(5)))
    assert [firsts(answer) for answer in answers] == [[0], [1], [2], [3], [4]]
    assert engine.batches == [(5, 2)]


async def test_rows_gather_while_the_engine_runs() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        tasks = [submitted(batcher, value) for value in range(3)]
        await until(lambda: batcher.queue_rows == 3)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
    assert engine.batches == [(1, 2), (3, 2)]


LINEAR = tuple(size / 10 for size in range(1, 9))
FLAT = (0.1,) * 8


@pytest.mark.parametrize(
    ("times_s", "batches"),
    [(LINEAR, [(1, 2), (4, 2), (3, 2)]), (FLAT, [(1, 2), (7, 2)]), ((), [(1, 2), (7, 2)])],
)
async def test_batches_are_evened_out_where_that_costs_nothing(
    times_s: tuple[float, ...], batches: list[tuple[int, int]]
) -> None:
    engine = EchoEngine()
    async with batching(engine, times_s=times_s) as batcher:
        first = await busy(engine, batcher)
        tasks = [submitted(batcher, value) for value in range(7)]
        await until(lambda: batcher.queue_rows == 7)
        engine.gate.set()
        answers = await asyncio.gather(first, *tasks)
    assert [firsts(answer) for answer in answers[1:]] == [[value] for value in range(7)]
    assert engine.batches == batches


async def test_batches_are_evened_out_over_the_lanes() -> None:
    engine = EchoEngine()
    async with batching(engine, times_s=LINEAR, device=Device(2)) as batcher:
        first, second = await busy(engine, batcher), await busy(engine, batcher)
        tasks = [submitted(batcher, value) for value in range(7)]
        await until(lambda: batcher.queue_rows == 7)
        engine.gate.set()
        await asyncio.gather(first, second, *tasks)
    # (7 + 1 + 1) / 3, then (4 + 1 + 3) / 3 rounded up.
    assert sorted(engine.batches) == [(1, 2), (1, 2), (1, 2), (3, 2), (3, 2)]


@pytest.mark.parametrize(("times_s", "left"), [(LINEAR, [False, False, False]), ((), [False, True, False])])
async def test_the_pace_is_learned_from_batches_that_could_not_have_been_larger(
    times_s: tuple[float, ...], left: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(Admission, "learn", lambda _, batch: seen.append(batch.left_others))
    engine = EchoEngine()
    async with batching(engine, times_s=times_s) as batcher:
        first = await busy(engine, batcher)
        # 7 rows are 4 and 3 where batches are evened out; 10 are 8 and 2.
        tasks = [submitted(batcher, value) for value in range(7 if times_s else 10)]
        await until(lambda: batcher.inflight_requests == len(tasks) + 1)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
    assert seen == left


async def test_batches_are_not_evened_out_with_those_before_a_rest() -> None:
    engine = EchoEngine()
    async with batching(engine, times_s=LINEAR) as batcher:
        await submit(batcher, rows(1000))
        await asyncio.gather(*(submit(batcher, rows(value)) for value in range(7)))
    assert engine.batches == [(1, 2), (7, 2)]


async def test_requests_of_several_rows_share_a_batch_that_they_make_larger_than_the_mean() -> None:
    engine = EchoEngine()
    async with batching(engine, times_s=LINEAR) as batcher:
        first = await busy(engine, batcher)
        tasks = [submitted(batcher, value, value, value) for value in range(2)]
        await until(lambda: batcher.queue_rows == 6)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
    # The mean is 4.
    assert engine.batches == [(1, 2), (6, 2)]


async def test_one_full_batch_is_written_while_the_engine_runs() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        await busy(engine, batcher)
        tasks = [submitted(batcher, value) for value in range(18)]
        await until(lambda: batcher.inflight_requests == 19)
        for _ in range(5):
            await asyncio.sleep(0)
        assert batcher.queue_rows == 10
        assert engine.batches == []
        engine.gate.set()
        answers = await asyncio.gather(*tasks)
    assert [firsts(answer) for answer in answers] == [[value] for value in range(18)]
    assert engine.batches == [(1, 2), (8, 2), (8, 2), (2, 2)]


async def test_every_caller_gets_its_own_rows_under_mixed_sizes() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        wanted = [[100 * caller + row for row in range(1 + caller % 20)] for caller in range(60)]
        answers = await asyncio.gather(*(submit(batcher, rows(*values)) for values in wanted))
    assert [firsts(answer) for answer in answers] == wanted
    assert max(shape[0] for shape in engine.batches) == 8


async def test_an_oversize_request_is_split_and_put_together_again() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        outputs = await submit(batcher, rows(*range(20)))
    assert firsts(outputs) == list(range(20))
    assert engine.batches == [(8, 2), (8, 2), (4, 2)]


async def test_rows_of_different_shapes_never_share_a_batch() -> None:
    engine = EchoEngine((None,))
    async with batching(engine) as batcher:
        short, long = await asyncio.gather(
            submit(batcher, rows(1, items=2)), submit(batcher, rows(2, items=3))
        )
    assert short["double"].tolist() == [[2, 2]]
    assert long["double"].tolist() == [[4, 4, 4]]
    assert sorted(engine.batches) == [(1, 2), (1, 3)]


async def test_an_answer_stays_as_it_is_when_the_engine_runs_again() -> None:
    async with batching(EchoEngine()) as batcher:
        earlier = await submit(batcher, rows(1))
        await submit(batcher, rows(2))
    assert firsts(earlier) == [1]


async def test_a_batch_between_sizes_is_padded_and_the_padding_reaches_nobody() -> None:
    engine = EchoEngine()
    async with batching(engine, sizes=(4, 8)) as batcher:
        assert firsts(await submit(batcher, rows(1, 2, 3))) == [1, 2, 3]
        assert firsts(await submit(batcher, rows(1, 2, 3, 4, 5))) == [1, 2, 3, 4, 5]
    assert engine.batches == [(4, 2), (8, 2)]


async def test_padding_is_not_what_an_earlier_batch_left_behind() -> None:
    engine = EchoEngine()
    async with batching(engine, sizes=(4,)) as batcher:
        with pytest.raises(EngineRunError):
            await submit(batcher, rows(1, 2, 3, POISON))
        assert firsts(await submit(batcher, rows(5))) == [5]


async def test_a_request_to_a_fixed_batch_is_padded_or_split() -> None:
    engine = EchoEngine(fixed_rows=4)
    async with batching(engine, sizes=(4,)) as batcher:
        assert firsts(await submit(batcher, rows(7))) == [7]
        assert firsts(await submit(batcher, rows(*range(6)))) == list(range(6))
    assert engine.batches == [(4, 2), (4, 2), (4, 2)]


async def test_rows_that_influence_each_other_run_request_by_request() -> None:
    engine = EchoEngine()
    async with batching(engine, batchable=False) as batcher:
        answers = await asyncio.gather(*(submit(batcher, rows(*values)) for values in ([1, 2], [3], [4, 5])))
        with pytest.raises(BadRequestError, match="has 9 rows; this model's rows influence each other"):
            await submit(batcher, rows(*range(9)))
    assert [firsts(answer) for answer in answers] == [[1, 2], [3], [4, 5]]
    assert engine.batches == [(2, 2), (1, 2), (2, 2)]


async def test_a_delay_waits_for_company_but_not_past_a_full_batch() -> None:
    engine = EchoEngine()
    async with batching(engine, max_queue_delay_us=10_000_000) as batcher:
        early = submitted(batcher, 0)
        await until(lambda: batcher.queue_rows == 1)
        await asyncio.sleep(0.02)
        assert not early.done()
        await asyncio.gather(early, *(submitted(batcher, value) for value in range(1, 8)))
    assert engine.batches == [(8, 2)]


async def test_a_delay_ends_when_the_oldest_row_has_waited_that_long() -> None:
    engine = EchoEngine()
    async with batching(engine, max_queue_delay_us=20_000) as batcher:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert firsts(await submit(batcher, rows(1))) == [1]
        assert loop.time() - started >= 0.019


async def test_a_full_queue_refuses_at_once_and_goes_on_afterwards() -> None:
    engine = EchoEngine()
    async with batching(engine, max_queue_rows=4) as batcher:
        first = await busy(engine, batcher)
        waiting = [submitted(batcher, value) for value in range(4)]
        await until(lambda: batcher.queue_rows == 4)
        with pytest.raises(QueueFullError, match="4 rows wait for the model and 4 may") as refusal:
            await submit(batcher, rows(9))
        assert refusal.value.retry_after_s == 1
        engine.gate.set()
        await asyncio.gather(first, *waiting)
        assert firsts(await submit(batcher, rows(9))) == [9]


async def test_a_request_larger_than_the_queue_is_told_to_be_smaller() -> None:
    async with batching(EchoEngine(), max_queue_rows=4) as batcher:
        with pytest.raises(TooLargeError, match="has 5 rows, the queue holds 4"):
            await submit(batcher, rows(*range(5)))


async def test_a_request_that_times_out_is_dropped_and_its_mates_are_not_touched() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        late = asyncio.create_task(submit(batcher, rows(1), timeout_s=0.01))
        mate = submitted(batcher, 2)
        with pytest.raises(DeadlineError, match="no answer within"):
            await late
        assert not mate.done()
        engine.gate.set()
        assert firsts(await mate) == [2]
        await first
        assert batcher.inflight_requests == 0
    assert engine.batches == [(1, 2), (1, 2)]


async def test_the_model_s_own_timeout_holds_where_the_client_names_a_longer_one() -> None:
    engine = EchoEngine()
    async with batching(engine, timeout_ms=10) as batcher:
        engine.gate.clear()
        with pytest.raises(DeadlineError):
            await submit(batcher, rows(1), timeout_s=60.0)


async def test_requests_that_wait_together_each_keep_their_deadline() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        results = await asyncio.gather(
            *(submit(batcher, rows(1), timeout_s=timeout_s) for timeout_s in (0.03, 0.01, 0.02)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [DeadlineError] * 3
        engine.gate.set()
        await first


async def test_a_later_and_shorter_deadline_is_kept() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        with pytest.raises(DeadlineError):
            await submit(batcher, rows(1), timeout_s=0.01)
        with pytest.raises(DeadlineError):
            await submit(batcher, rows(1), timeout_s=0.02)
        engine.gate.set()
        await first


async def test_a_cancelled_request_does_not_hurt_its_batch_mates() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        tasks = [submitted(batcher, value) for value in range(4)]
        await until(lambda: batcher.queue_rows == 4)
        tasks[1].cancel()
        await until(tasks[1].cancelled)
        engine.gate.set()
        await first
        assert [firsts(await tasks[index]) for index in (0, 2, 3)] == [[0], [2], [3]]
    assert engine.batches == [(1, 2), (3, 2)]


async def test_a_request_cancelled_in_its_batch_does_not_hurt_its_mates() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        engine.gate.clear()
        tasks = [submitted(batcher, value) for value in range(3)]
        await until(engine.entered.is_set)
        tasks[0].cancel()
        await until(tasks[0].cancelled)
        engine.gate.set()
        assert [firsts(await task) for task in tasks[1:]] == [[1], [2]]


async def test_a_client_that_left_is_dropped_when_the_batch_forms() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        left = asyncio.create_task(submit(batcher, rows(1), gone=True))
        stays = submitted(batcher, 2)
        await until(lambda: batcher.queue_rows == 2)
        engine.gate.set()
        with pytest.raises(DepartedError):
            await left
        assert firsts(await stays) == [2]
        await first
    assert engine.batches == [(1, 2), (1, 2)]


async def test_an_engine_that_fails_fails_its_batch_alone() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        results = await asyncio.gather(
            submit(batcher, rows(POISON)), submit(batcher, rows(1)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["a poisoned row"] * 2
        assert all(isinstance(result, EngineRunError) for result in results)
        assert results[0] is not results[1]
        assert firsts(await submit(batcher, rows(2))) == [2]


async def test_a_split_request_fails_as_a_whole() -> None:
    async with batching(EchoEngine()) as batcher:
        with pytest.raises(EngineRunError, match="a poisoned row"):
            await submit(batcher, rows(*range(19), POISON))
        assert firsts(await submit(batcher, rows(2))) == [2]


async def test_inputs_that_differ_in_rows_are_refused() -> None:
    async with batching(EchoEngine()) as batcher:
        with pytest.raises(BadRequestError, match="x has 1, z has 2; send as many rows in each"):
            await submit(batcher, {**rows(1), "z": np.zeros((2, 1), np.float32)})


async def test_closing_answers_what_was_admitted_and_refuses_the_rest() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        waiting = submitted(batcher, 1)
        await until(lambda: batcher.queue_rows == 1)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="being unloaded"):
            await submit(batcher, rows(2))
        assert engine.closed == 0
        engine.gate.set()
        await closing
        assert firsts(await waiting) == [1]
        await first
        await batcher.close()
    assert engine.closed == 1


async def test_closing_waits_for_what_was_admitted_as_long_as_that_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_for, limits_s = asyncio.wait_for, list[float | None]()

    async def noted(settled: Any, timeout: float | None) -> Any:  # noqa: ASYNC109 - asyncio's own
        limits_s.append(timeout)
        return await wait_for(settled, timeout)

    monkeypatch.setattr(asyncio, "wait_for", noted)
    engine = EchoEngine()
    async with batching(engine, timeout_ms=200) as batcher:
        first = await busy(engine, batcher)
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(DeadlineError):
            await first
        engine.gate.set()
        await closing
    assert limits_s == [None]


async def test_closing_gives_up_on_what_still_waits_when_its_time_is_over() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        waiting = submitted(batcher, 1)
        await until(lambda: batcher.queue_rows == 1)
        closing = asyncio.create_task(batcher.close(drain_s=0.01))
        with pytest.raises(NotReadyError, match="being unloaded"):
            await waiting
        engine.gate.set()
        await first
        await closing


async def test_the_slots_of_a_batch_size_are_used_again() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        for value in range(10):
            await submit(batcher, rows(value))
    assert engine.slots == 1


async def test_counts_batches_rows_and_waits_once() -> None:
    metrics = Metrics()
    async with batching(EchoEngine(), metrics=metrics) as batcher:
        await submit(batcher, rows(*range(12)))
        await submit(batcher, rows(1))
    labels = {"model": "m", "version": "1"}
    sample = metrics.registry.get_sample_value
    assert sample("octet_batch_rows_sum", labels) == 13
    assert sample("octet_batch_rows_count", labels) == 3
    assert sample("octet_compute_seconds_count", labels) == 3
    assert sample("octet_queue_seconds_count", labels) == 2


async def test_a_higher_priority_is_in_the_next_batch() -> None:
    engine = EchoEngine()
    async with batching(engine, sizes=(1,)) as batcher:
        first = await busy(engine, batcher)
        tasks = [
            asyncio.create_task(submit(batcher, rows(value), priority=priority))
            for value, priority in ((1, None), (2, 3), (3, None), (4, 1))
        ]
        ended: list[float] = []
        for task in tasks:
            task.add_done_callback(lambda done: ended.append(firsts(done.result())[0]))
        await until(lambda: batcher.inflight_requests == 5)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
    assert ended == [4, 1, 3, 2]


async def test_engines_that_share_a_device_run_one_at_a_time() -> None:
    device, one, other = Device(), EchoEngine(), EchoEngine()
    async with batching(one, device=device) as batcher, batching(other, device=device) as waits:
        first = await busy(one, batcher)
        second = submitted(waits, 2)
        await until(lambda: waits.queue_rows == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not other.entered.is_set()
        one.gate.set()
        assert firsts(await second) == [2]
        await first


async def test_a_batch_is_not_written_ahead_of_another_model_that_waits() -> None:
    device, one, other = Device(), EchoEngine(), EchoEngine()
    async with batching(one, device=device) as batcher, batching(other, device=device) as waits:
        first = await busy(one, batcher)
        second = submitted(waits, 2)
        await until(lambda: waits.queue_rows == 1)
        await asyncio.sleep(0)
        full = [submitted(batcher, value) for value in range(8)]
        await until(lambda: batcher.queue_rows == 8)
        await asyncio.sleep(0)
        assert batcher.queue_rows == 8
        one.gate.set()
        await asyncio.gather(first, second, *full)


async def test_an_engine_runs_as_many_batches_at_a_time_as_the_device_has_lanes() -> None:
    engine = EchoEngine()
    async with batching(engine, device=Device(2)) as batcher:
        engine.gate.clear()
        tasks = [submitted(batcher, 0)]
        await until(engine.entered.is_set)
        engine.entered.clear()
        tasks.append(submitted(batcher, 1))
        await until(engine.entered.is_set)
        tasks.append(submitted(batcher, 2))
        await until(lambda: batcher.queue_rows == 1)
        engine.gate.set()
        assert [firsts(await task) for task in tasks] == [[0], [1], [2]]


async def test_a_batch_of_departed_clients_alone_leaves_the_device_free() -> None:
    device, engine = Device(), EchoEngine()
    async with batching(engine, device=device) as batcher:
        with pytest.raises(DepartedError):
            await submit(batcher, rows(1), gone=True)
        assert firsts(await submit(batcher, rows(2))) == [2]


async def test_a_closed_batcher_holds_no_lane() -> None:
    device = Device()
    async with batching(EchoEngine(), device=device) as batcher:
        await submit(batcher, rows(1))
    async with batching(EchoEngine(), device=device) as batcher:
        assert firsts(await submit(batcher, rows(2))) == [2]


async def test_rows_of_different_lengths_share_a_batch_and_get_answers_of_their_own_length() -> None:
    engine = EchoEngine((None,))
    async with batching(engine, lengths=(4, 8)) as batcher:
        answers = await asyncio.gather(*(submit(batcher, rows(items, items=items)) for items in (2, 4, 3)))
    assert [answer["double"].tolist() for answer in answers] == [[[4] * 2], [[8] * 4], [[6] * 3]]
    assert [firsts(answer) for answer in answers] == [[2], [4], [3]]
    assert engine.batches == [(3, 4)]


async def test_padded_places_are_zero_whatever_an_earlier_batch_left_there() -> None:
    engine = EchoEngine((None,))
    async with batching(engine, sizes=(2,), lengths=(4,)) as batcher:
        with pytest.raises(EngineRunError):
            await submit(batcher, rows(POISON, POISON, items=4))
        assert firsts(await submit(batcher, rows(5, items=2))) == [5]


async def test_a_split_request_is_padded_and_put_together_in_its_own_length() -> None:
    engine = EchoEngine((None,))
    async with batching(engine, sizes=(1, 2), lengths=(4,)) as batcher:
        outputs = await submit(batcher, rows(1, 2, 3, items=3))
    assert outputs["double"].tolist() == [[2] * 3, [4] * 3, [6] * 3]
    assert outputs["double"].flags.c_contiguous


async def test_rows_longer_than_was_proven_run_as_they_are() -> None:
    engine = EchoEngine((None,))
    async with batching(engine, lengths=(4,)) as batcher:
        assert (await submit(batcher, rows(1, items=6)))["double"].tolist() == [[2] * 6]
    assert engine.batches == [(1, 6)]


async def test_a_caller_that_cannot_take_its_answer_does_not_hurt_its_batch_mates() -> None:
    class Broken(Awaiting):
        def answered(self, outputs: dict[str, Array]) -> None:
            raise ValueError(f"no room for {len(outputs)} outputs")

    engine = EchoEngine()
    async with batching(engine) as batcher:
        first = await busy(engine, batcher)
        batcher.enqueue(rows(1), Broken())
        mate = submitted(batcher, 2)
        await until(lambda: batcher.queue_rows == 2)
        engine.gate.set()
        assert firsts(await mate) == [2]
        await first
        assert batcher.inflight_requests == 0
    assert engine.batches == [(1, 2), (2, 2)]


async def test_an_engine_at_rest_keeps_nothing_of_its_last_batch() -> None:
    engine = EchoEngine()
    async with batching(engine) as batcher:
        caller = Awaiting()
        left = weakref.ref(caller)
        batcher.enqueue(rows(1), caller)
        await caller.answer
        del caller
        await until(lambda: left() is None)
