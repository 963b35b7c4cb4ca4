import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.model.tensors import Array, TensorSpec
from engines.proof.padding import Padding
from engines.runtimes.slots import MAX_KEPT_SLOTS
from service.batching.batch_sizes import BatchRules, batch_sizes, row_lengths


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


def test_every_size_is_run_where_all_lie_in_the_same_memory() -> None:
    assert batch_sizes(inputs(3, 640, 640), 24, shared=True) == tuple(range(1, 25))


def test_a_fixed_batch_is_the_only_size() -> None:
    assert batch_sizes(inputs(2, rows=7), 32) == (7,)


def test_sizes_are_fewer_where_each_is_run_in_many_lengths() -> None:
    assert batch_sizes(inputs(2), 32, few=True) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def timed(*sizes: int, fixed: float) -> BatchRules:
    """A row takes a millisecond, a batch `fixed` of them more, of which a tenth are not the engine's."""
    times_s = tuple((size + fixed - 0.1) / 1e3 for size in sizes)
    return BatchRules(batchable=True, sizes=sizes, times_s=times_s)


LINEAR = timed(*range(1, 33), fixed=0.5)


def test_batches_even_out_where_all_clients_come_back() -> None:
    waiting, last, seen = 15, 1, []
    for _ in range(4):
        rows = LINEAR.rows_now(waiting, [last])
        seen.append(rows)
        # Those that have just run are sent again while these run.
        waiting, last = waiting - rows + last, rows
    assert seen == [8, 8, 8, 8]


def test_batches_of_several_lanes_even_out() -> None:
    assert LINEAR.rows_now(12, [3, 3]) == 6
    assert LINEAR.rows_now(12, [6, 6]) == 8


def test_what_waits_is_taken_whole_where_it_is_less_than_before() -> None:
    assert LINEAR.rows_now(3, [16]) == 3


def test_what_waits_is_taken_whole_after_no_other_batch() -> None:
    assert LINEAR.rows_now(15, []) == 15


@pytest.mark.parametrize("waiting", [32, 40, 100])
def test_a_batch_that_can_be_full_is(waiting: int) -> None:
    assert LINEAR.rows_now(waiting, [1]) == 32


@pytest.mark.parametrize(
    ("fixed", "rows"),
    # 8 rows in 8 + fixed, against 15 in 15 + fixed: nine tenths as many a second, where fixed is 2.15.
    [(0.1, 8), (2.1, 8), (2.2, 15), (1000.0, 15)],
)
def test_all_that_waits_is_taken_where_smaller_batches_would_be_slower(fixed: float, rows: int) -> None:
    assert timed(*range(1, 33), fixed=fixed).rows_now(15, [1]) == rows


def test_batches_even_out_to_no_padding() -> None:
    rules = timed(1, 2, 4, 8, 16, 32, fixed=0.5)
    # The mean is 9, of which a batch would be one of 16.
    assert rules.rows_now(16, [1]) == 16
    assert rules.rows_now(15, [1]) == 8
    assert rules.rows_now(24, [8]) == 16
    # 12 rows are padded to 16.
    assert rules.rows_now(12, [2]) == 8


def test_sizes_that_run_faster_than_those_around_are_preferred() -> None:
    rules = BatchRules(batchable=True, sizes=(1, 7, 8, 15, 32), times_s=(0.001, 0.009, 0.005, 0.010, 0.020))
    assert rules.rows_now(15, [1]) == 8
    assert rules.rows_now(13, [1]) == 13


def test_without_times_all_that_waits_is_taken() -> None:
    assert BatchRules(batchable=True, sizes=LINEAR.sizes).rows_now(15, [1]) == 15


@given(
    waiting=st.integers(1, 200),
    recent=st.lists(st.integers(1, 32), max_size=3),
    fixed=st.floats(0.1, 1e6),
    sizes=st.sampled_from([LINEAR.sizes, (1, 2, 4, 8, 16, 32), (32,), (5, 32)]),
)
def test_a_batch_takes_some_of_what_waits_at_nine_tenths_of_the_pace(
    waiting: int, recent: list[int], fixed: float, sizes: tuple[int, ...]
) -> None:
    rules, most = timed(*sizes, fixed=fixed), min(waiting, 32)
    rows = rules.rows_now(waiting, recent)
    assert 1 <= rows <= most
    assert rows / (rules.size_for(rows) + fixed) >= 0.899 * most / (rules.size_for(most) + fixed)


@pytest.mark.parametrize("longest", [1, 15, 16, 17, 128, 500, 16_000])
def test_rows_are_padded_by_a_fifth_at_most_unless_they_are_very_short(longest: int) -> None:
    lengths = row_lengths(longest)
    assert lengths[-1] == longest
    assert list(lengths) == sorted(set(lengths))
    assert len(lengths) <= 18
    for shorter, longer in itertools.pairwise(lengths):
        assert longer <= 1.25 * shorter


def test_rows_of_lengths_in_between_run_in_the_same_shape() -> None:
    rules = BatchRules(batchable=True, sizes=(1,), padding=PADDING, lengths=(16, 20))
    assert rules.item_shapes(text(17)) == ((20,), (20, 3), (5,))
    assert rules.item_shapes(text(20)) == ((20,), (20, 3), (5,))
    assert rules.item_shapes(text(3)) == ((16,), (16, 3), (5,))


def test_rows_longer_than_any_that_was_proven_keep_their_length() -> None:
    rules = BatchRules(batchable=True, sizes=(1,), padding=PADDING, lengths=(16, 20))
    assert rules.item_shapes(text(21)) == ((21,), (21, 3), (5,))


def test_inputs_that_disagree_on_the_length_are_left_to_the_engine_s_own_words() -> None:
    rules = BatchRules(batchable=True, sizes=(1,), padding=PADDING, lengths=(16, 20))
    assert rules.item_shapes({**text(17), "mask": np.zeros((2, 9), np.int64)})[0] == (9,)


PADDING = Padding(mask="mask", inputs={"mask": 1, "x": 1}, outputs={}, longest=20)


def text(length: int) -> dict[str, Array]:
    return {
        "mask": np.ones((2, length), np.int64),
        "x": np.ones((2, length, 3), np.float32),
        "scale": np.ones((2, 5), np.float32),
    }
