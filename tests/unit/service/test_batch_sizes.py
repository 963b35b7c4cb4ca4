import numpy as np
import pytest

from engines.errors import EngineRunError
from engines.options import Batching
from engines.runtimes.slots import MAX_KEPT_SLOTS
from engines.tensors import TensorSpec
from service.batch_sizes import BatchRules, batch_sizes, warm_up
from tests.unit.service.echo_engine import EchoEngine


def inputs(*item: int, rows: int | None = None) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="x", dtype=np.dtype(np.float32), shape=(rows, *item)),)


def test_small_batches_are_run_in_every_size() -> None:
    assert batch_sizes(inputs(2), 5) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("most", [1, 31, 32, 33, 100, 4096])
def test_large_batches_are_padded_by_a_fifth_at_most_and_end_at_the_limit(most: int) -> None:
    sizes = batch_sizes(inputs(2), most)
    assert sizes[0] == 1
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    rules = BatchRules(batchable=True, sizes=sizes)
    assert all(rows <= rules.size_for(rows) <= max(32, 1.25 * rows) for rows in range(1, most + 1))


def test_the_engine_keeps_the_buffers_of_all_sizes() -> None:
    # The largest size has two.
    assert len(batch_sizes(inputs(2), 4096)) < MAX_KEPT_SLOTS


def test_sizes_are_fewer_where_their_buffers_would_fill_the_memory() -> None:
    assert batch_sizes(inputs(3, 640, 640), 24) == (1, 2, 4, 8, 16, 24)


def test_a_fixed_batch_is_the_only_size() -> None:
    assert batch_sizes(inputs(2, rows=7), 32) == (7,)


def test_warm_up_runs_every_size_and_the_largest_twice() -> None:
    engine = EchoEngine()
    rules = warm_up(engine, Batching(max_batch_rows=4), batchable=True)
    assert rules.sizes == (1, 2, 3, 4)
    assert sorted(shape[0] for shape in engine.batches) == [1, 2, 3, 4, 4]


def test_warm_up_begins_with_the_sizes_that_leave_the_smallest_gaps() -> None:
    engine = EchoEngine()
    warm_up(engine, Batching(max_batch_rows=12), batchable=True)
    assert [shape[0] for shape in engine.batches] == [12, 12, 1, 2, 4, 8, 3, 6, 5, 7, 10, 9, 11]


def test_batches_after_the_warm_up_need_no_new_buffers() -> None:
    engine = EchoEngine()
    warm_up(engine, Batching(max_batch_rows=4), batchable=True)
    made = engine.slots
    held = [engine.slot({"x": (4, 2)}), engine.slot({"x": (4, 2)}), engine.slot({"x": (1, 2)})]
    assert engine.slots == made
    assert held[0] is not held[1]


def test_a_warm_up_out_of_time_leaves_sizes_out_but_not_the_largest() -> None:
    rules = warm_up(EchoEngine(), Batching(max_batch_rows=8), batchable=True, budget_s=0.0)
    assert rules.sizes == (8,)
    assert rules.size_for(1) == 8


def test_free_row_shapes_are_left_to_the_clients() -> None:
    engine = EchoEngine((None,))
    assert warm_up(engine, Batching(max_batch_rows=2), batchable=True).sizes == (1, 2)
    assert engine.batches == []


def test_an_engine_that_cannot_run_a_size_is_not_served() -> None:
    engine = EchoEngine()
    engine.close()
    with pytest.raises(EngineRunError):
        warm_up(engine, Batching(max_batch_rows=2), batchable=True)
