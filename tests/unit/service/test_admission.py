"""Bounds of the queue in rows are tested through the batcher; here it is those in time."""

import numpy as np
import pytest

from engines.options import Batching
from loadtests.awaiting import Awaiting
from service.batching.admission import Admission
from service.batching.batch import Batch
from service.batching.batch_sizes import BatchRules
from service.batching.queue import Part, Waiting
from service.errors import QueueFullError
from tests.unit.service.callers import nothing
from tests.unit.service.echo_engine import EchoEngine

PLENTY_S = 1e6


def admission() -> Admission:
    return Admission(Batching(), BatchRules(batchable=True, sizes=(1, 8)))


def ran(rows: int, *, arrived_s: float, started_s: float, ended_s: float, left_others: bool = True) -> Batch:
    request = Waiting(
        feeds={"x": np.zeros((rows, 2), np.float32)},
        rows=rows,
        arrived_s=arrived_s,
        turn_s=arrived_s,
        deadline_s=PLENTY_S,
        caller=Awaiting(gone=False),
        on_settled=nothing,
    )
    return Batch(
        parts=[Part(request=request, start=0, rows=rows)],
        slot=EchoEngine().slot({"x": (rows, 2)}),
        left_others=left_others,
        started_s=started_s,
        ended_s=ended_s,
    )


def busy(gate: Admission, *, batch_s: float) -> None:
    """Has the gate see one full batch after the other."""
    for number in range(200):
        ended_s = (number + 1) * batch_s
        gate.learn(ran(8, arrived_s=0.0, started_s=ended_s - 0.1 * batch_s, ended_s=ended_s))


async def test_before_a_pace_is_known_only_rows_count() -> None:
    admission().check_room(1, 2047, 0.001)
    with pytest.raises(QueueFullError, match="2048 rows wait for the model and 2048 may"):
        admission().check_room(1, 2048, PLENTY_S)


async def test_refuses_whose_turn_would_come_too_late() -> None:
    gate = admission()
    busy(gate, batch_s=0.8)
    gate.check_room(1, 49, timeout_s=10.0)
    with pytest.raises(QueueFullError, match=r"51 rows wait for the model, about 5\.1 s of work") as refusal:
        gate.check_room(1, 51, timeout_s=10.0)
    assert refusal.value.retry_after_s == 6


async def test_the_pace_holds_what_else_the_engine_waited_for() -> None:
    gate = admission()
    # A batch runs for a tenth of a second and ends eight tenths after the one before.
    for number in range(200):
        gate.learn(ran(8, arrived_s=0.0, started_s=number * 0.8 + 0.7, ended_s=number * 0.8 + 0.8))
    with pytest.raises(QueueFullError, match="about 10 s of work"):
        gate.check_room(1, 100, timeout_s=19.0)


async def test_a_batch_that_was_held_up_turns_nobody_away() -> None:
    gate = admission()
    gate.learn(ran(8, arrived_s=0.0, started_s=0.0, ended_s=2.0))
    gate.check_room(1, 2000, timeout_s=30.0)


async def test_an_idle_engine_and_batches_that_left_nobody_waiting_teach_no_pace() -> None:
    gate = admission()
    for number in range(10):
        gate.learn(ran(1, arrived_s=0.0, started_s=0.0, ended_s=5.0 * number, left_others=False))
    gate.check_room(1, 2000, timeout_s=0.001)
    # Idle for most of the time: what came before its rows did is no work.
    for start_s in range(100, 1100, 100):
        gate.learn(ran(8, arrived_s=start_s, started_s=start_s, ended_s=start_s + 0.8))
    gate.check_room(1, 40, timeout_s=10.0)


async def test_tells_to_come_back_after_a_second_at_least_and_a_minute_at_most() -> None:
    gate = admission()
    busy(gate, batch_s=8.0)
    with pytest.raises(QueueFullError) as refusal:
        gate.check_room(1, 2000, timeout_s=30.0)
    assert refusal.value.retry_after_s == 60
    quick = admission()
    busy(quick, batch_s=0.0008)
    with pytest.raises(QueueFullError) as refusal:
        quick.check_room(1, 2048, timeout_s=30.0)
    assert refusal.value.retry_after_s == 1
