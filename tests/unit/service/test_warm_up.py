import dataclasses

import numpy as np
import pytest

from engines.errors import EngineRunError
from engines.options import Batching
from engines.proof.padding import Padding
from service.serving.warm_up import warm_up
from tests.unit.service.echo_engine import EchoEngine


def test_warm_up_runs_every_size_and_the_largest_twice() -> None:
    engine = EchoEngine()
    rules = warm_up(engine, Batching(max_batch_rows=4), batchable=True)
    assert rules.sizes == (1, 2, 3, 4)
    assert sorted(shape[0] for shape in engine.batches[:5]) == [1, 2, 3, 4, 4]
    # Timed.
    assert {shape[0] for shape in engine.batches[5:]} == {1, 2, 3, 4}


def test_warm_up_begins_with_the_sizes_that_leave_the_smallest_gaps() -> None:
    engine = EchoEngine()
    warm_up(engine, Batching(max_batch_rows=12), batchable=True)
    assert [shape[0] for shape in engine.batches[:13]] == [12, 12, 1, 2, 4, 8, 3, 6, 5, 7, 10, 9, 11]


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


class TimedEngine(EchoEngine):
    """Takes `fixed_s` for a batch and `row_s` for each of its rows, by a clock of its own."""

    def __init__(self, fixed_s: float, row_s: float) -> None:
        super().__init__()
        self._fixed_s, self._row_s = fixed_s, row_s

    def now_s(self) -> float:
        return sum(self._times_s())

    def _times_s(self) -> list[float]:
        return [self._fixed_s + self._row_s * shape[0] for shape in self.batches]


class HinderedEngine(TimedEngine):
    """Takes twice as long in every third run."""

    def now_s(self) -> float:
        times_s = self._times_s()
        return sum(times_s) + sum(times_s[::3])


def timing(
    engine: TimedEngine, monkeypatch: pytest.MonkeyPatch, rows: int, budget_s: float = 5.0
) -> list[float]:
    """What the warm-up says of batches of 1 to `rows` rows, in seconds."""
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(f"service.serving.warm_up.time.{clock}", engine.now_s)
    rules = warm_up(engine, Batching(max_batch_rows=rows), batchable=True, budget_s=budget_s)
    assert rules.sizes == tuple(range(1, rows + 1))
    return list(rules.times_s)


def test_the_warm_up_times_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = timing(TimedEngine(0.002, 0.001), monkeypatch, 8)
    assert times_s == pytest.approx([0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.010])


def test_runs_that_something_else_held_up_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timing(HinderedEngine(0.002, 0.001), monkeypatch, 4) == pytest.approx([0.003, 0.004, 0.005, 0.006])


def test_of_a_slow_engine_the_largest_and_the_smallest_size_are_timed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = TimedEngine(0.25, 0.25)
    assert timing(engine, monkeypatch, 4, budget_s=60) == pytest.approx([0.5, 0.75, 1.0, 1.25])
    assert [shape[0] for shape in engine.batches] == [4, 4, 1, 2, 3, 4, 1]


def test_rows_that_may_not_share_a_batch_are_not_timed() -> None:
    engine = EchoEngine()
    assert warm_up(engine, Batching(max_batch_rows=2), batchable=False).times_s == ()
    assert len(engine.batches) == 3


def test_a_single_size_is_not_timed() -> None:
    engine = EchoEngine(fixed_rows=4)
    assert warm_up(engine, Batching(max_batch_rows=4), batchable=True).times_s == ()
    assert len(engine.batches) == 2


def test_free_row_shapes_are_left_to_the_clients() -> None:
    engine = EchoEngine((None,))
    assert warm_up(engine, Batching(max_batch_rows=2), batchable=True).sizes == (1, 2)
    assert engine.batches == []


def test_an_engine_that_cannot_run_a_size_is_not_served() -> None:
    engine = EchoEngine()
    engine.close()
    with pytest.raises(EngineRunError):
        warm_up(engine, Batching(max_batch_rows=2), batchable=True)


PADDING = Padding(mask="x", inputs={"x": 1}, outputs={"double": 1}, longest=20)


def test_rows_that_may_be_padded_are_run_in_every_size_and_length() -> None:
    engine = EchoEngine((None,))
    rules = warm_up(engine, Batching(max_batch_rows=3), batchable=True, padding=PADDING)
    assert (rules.sizes, rules.lengths) == ((1, 2, 3), (16, 20))
    assert sorted(engine.batches) == sorted(
        (size, length) for size in (1, 2, 3, 3) for length in rules.lengths
    )


def test_out_of_time_rows_are_padded_to_twice_their_length_at_most() -> None:
    engine = EchoEngine((None,))
    padding = dataclasses.replace(PADDING, longest=40)
    rules = warm_up(engine, Batching(max_batch_rows=3), batchable=True, padding=padding, budget_s=0.0)
    assert rules.lengths == (16, 32, 40)
    assert rules.item_shapes({"x": np.zeros((1, 17), np.float32)}) == ((32,),)
