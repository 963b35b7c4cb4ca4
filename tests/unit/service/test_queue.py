import numpy as np
import pytest

from loadtests.awaiting import Awaiting
from service.batching.queue import (
    LOWEST_PRIORITY,
    PRIORITY_STEP_S,
    DepartedError,
    Part,
    RowQueue,
    Waiting,
    turn_s,
)
from tests.unit.service.callers import answer_of, nothing

ONE = ((2,),)
OTHER = ((3,),)


def waiting(rows: int, arrived_s: float, *, gone: bool = False, priority: int | None = None) -> Waiting:
    return Waiting(
        feeds={"x": np.zeros((rows, 2), np.float32)},
        rows=rows,
        arrived_s=arrived_s,
        turn_s=turn_s(arrived_s, priority),
        deadline_s=arrived_s + 1,
        caller=Awaiting(gone=gone),
        on_settled=nothing,
    )


def queued(*parts: tuple[tuple[tuple[int, ...], ...], Waiting]) -> RowQueue:
    queue = RowQueue()
    for shapes, request in parts:
        queue.push(shapes, Part(request=request, start=0, rows=request.rows))
    return queue


async def test_takes_nothing_from_an_empty_queue() -> None:
    assert RowQueue().take(8) == []


async def test_counts_rows_not_requests() -> None:
    queue = queued(*((ONE, waiting(3, float(i))) for i in range(4)))
    assert [part.rows for part in queue.take(8)] == [3, 3]
    assert queue.rows == 6


async def test_keeps_the_order_of_arrival_and_does_not_skip_ahead() -> None:
    first, large, small = waiting(2, 0.0), waiting(7, 1.0), waiting(1, 2.0)
    queue = queued((ONE, first), (ONE, large), (ONE, small))
    assert [part.request for part in queue.take(8)] == [first]
    assert [part.request for part in queue.take(8)] == [large, small]
    assert queue.rows == 0


async def test_fills_a_batch_to_the_last_row() -> None:
    queue = queued(*((ONE, waiting(1, float(i))) for i in range(9)))
    assert len(queue.take(8)) == 8


async def test_a_batch_is_closed_with_enough_rows() -> None:
    queue = queued(*((ONE, waiting(2, float(i))) for i in range(4)))
    assert sum(part.rows for part in queue.take(8, 3)) == 4
    assert sum(part.rows for part in queue.take(8, 4)) == 4
    assert queue.rows == 0


async def test_enough_rows_are_no_more_than_fit() -> None:
    queue = queued((ONE, waiting(2, 0.0)), (ONE, waiting(7, 1.0)))
    assert [part.rows for part in queue.take(8, 3)] == [2]


async def test_takes_a_first_part_of_any_size() -> None:
    queue = queued((ONE, waiting(9, 0.0)), (ONE, waiting(1, 1.0)))
    assert [part.rows for part in queue.take(1)] == [9]


async def test_rows_of_different_shapes_never_share_a_batch_and_the_oldest_goes_first() -> None:
    parts = [
        (ONE, waiting(1, 1.0)),
        (OTHER, waiting(1, 0.0)),
        (ONE, waiting(1, 2.0)),
        (OTHER, waiting(1, 3.0)),
    ]
    queue = queued(*parts)
    assert [part.request for part in queue.take(8)] == [parts[1][1], parts[3][1]]
    assert [part.request for part in queue.take(8)] == [parts[0][1], parts[2][1]]
    assert queue.take(8) == []


async def test_drops_requests_whose_client_has_gone_and_tells_them() -> None:
    left, stays = waiting(4, 0.0, gone=True), waiting(5, 1.0)
    queue = queued((ONE, left), (ONE, stays))
    assert [part.request for part in queue.take(8)] == [stays]
    assert queue.rows == 0
    with pytest.raises(DepartedError):
        answer_of(left).result()


async def test_drops_requests_that_were_answered_while_they_waited() -> None:
    timed_out, cancelled, stays = waiting(4, 0.0), waiting(4, 1.0), waiting(8, 2.0)
    timed_out.fail(TimeoutError())
    answer_of(cancelled).cancel()
    queue = queued((ONE, timed_out), (ONE, cancelled), (ONE, stays))
    assert [part.request for part in queue.take(8)] == [stays]
    assert isinstance(answer_of(timed_out).exception(), TimeoutError)


async def test_goes_on_to_the_next_shape_when_everybody_of_the_oldest_has_gone() -> None:
    stays = waiting(1, 1.0)
    queue = queued((ONE, waiting(1, 0.0, gone=True)), (OTHER, stays))
    part = queue.take(8)[0]
    assert part.request is stays
    assert queue.rows == 0


async def test_whoever_stays_behind_one_that_left_does_not_inherit_its_turn() -> None:
    second = waiting(1, 1.0)
    queue = queued((ONE, waiting(1, 0.0, gone=True)), (ONE, waiting(1, 2.0)), (OTHER, second))
    assert [part.request for part in queue.take(8)] == [second]


@pytest.mark.parametrize(("rows", "full"), [(7, False), (8, True)])
async def test_a_batch_is_full_at_its_limit(rows: int, full: bool) -> None:
    assert queued((ONE, waiting(rows, 0.0))).fills(8) is full


async def test_rows_of_another_shape_do_not_fill_a_batch() -> None:
    assert not queued((ONE, waiting(4, 0.0)), (OTHER, waiting(20, 1.0))).fills(8)


async def test_an_answer_waits_for_every_part_and_keeps_their_order() -> None:
    request = waiting(5, 0.0)
    request.parts = 2
    first, second = Part(request=request, start=0, rows=3), Part(request=request, start=3, rows=2)
    request.answer_part(second, {"y": np.array([3, 4])})
    assert not answer_of(request).done()
    request.answer_part(first, {"y": np.array([0, 1, 2])})
    assert answer_of(request).result()["y"].tolist() == [0, 1, 2, 3, 4]


async def test_a_part_knows_its_rows() -> None:
    request = waiting(5, 0.0)
    request.feeds["x"][:] = np.arange(5, dtype=np.float32)[:, None]
    assert Part(request=request, start=3, rows=2).rows_of("x")[:, 0].tolist() == [3, 4]


async def test_a_higher_priority_goes_first_and_none_is_between_the_first_and_the_third() -> None:
    low, unsaid, high = waiting(1, 0.0, priority=3), waiting(1, 0.1), waiting(1, 0.2, priority=1)
    queue = queued((ONE, low), (ONE, unsaid), (ONE, high))
    assert [part.request for part in queue.take(8)] == [high, unsaid, low]


async def test_a_priority_chooses_the_shape_that_goes_next() -> None:
    queue = queued((ONE, waiting(1, 0.0)), (OTHER, waiting(1, 0.5, priority=1)))
    assert queue.next_shapes() == OTHER


async def test_a_low_priority_is_overtaken_only_by_what_came_within_its_steps() -> None:
    low = waiting(1, 0.0, priority=2)
    before, after = (waiting(1, PRIORITY_STEP_S + late_s, priority=1) for late_s in (-0.1, 0.1))
    queue = queued((ONE, low), (ONE, before), (ONE, after))
    assert [part.request for part in queue.take(8)] == [before, low, after]


def test_a_priority_below_the_lowest_counts_as_the_lowest() -> None:
    assert turn_s(5.0, 1_000_000) == turn_s(5.0, LOWEST_PRIORITY)
    assert turn_s(5.0, 1) == 5.0


async def test_a_delay_counts_from_the_row_that_waited_longest_whatever_its_turn() -> None:
    assert queued((ONE, waiting(1, 0.0, priority=3)), (ONE, waiting(1, 0.5, priority=1))).oldest_s() == 0.0
