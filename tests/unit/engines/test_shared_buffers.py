"""Slots of all sizes in the same memory: an engine that adds up the rows."""

import gc
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.runtimes.base import Slot
from engines.runtimes.shared_buffers import PlacedSlot, SharedBuffersEngine
from engines.runtimes.slots import MAX_KEPT_SLOTS

ITEM = 3


class Adder(SharedBuffersEngine):
    """Adds up `x` and `ids`, row by row; refuses batches of 13."""

    def __init__(self) -> None:
        super().__init__(
            inputs=(
                TensorSpec(name="x", dtype=np.dtype(np.float32), shape=(None, None)),
                TensorSpec(name="ids", dtype=np.dtype(np.int64), shape=(None,)),
            ),
            outputs=(TensorSpec(name="y", dtype=np.dtype(np.float32), shape=(None,)),),
        )
        self.made = 0

    def _new_slot(self, buffers: Mapping[str, Array]) -> PlacedSlot:
        if len(buffers["ids"]) == 13:
            raise EngineRunError("no batch of 13")
        self.made += 1
        return Sum(buffers)


class Sum(PlacedSlot):
    """One batch."""

    def run(self) -> Mapping[str, Array]:
        return {"y": self.inputs["x"].sum(axis=1) + self.inputs["ids"].astype(np.float32)}


def shapes(rows: int, item: int = ITEM) -> dict[str, tuple[int, ...]]:
    return {"x": (rows, item), "ids": (rows,)}


def memory_of(slot: Slot) -> int:
    return slot.inputs["x"].ctypes.data


def filled(engine: Adder, rows: int, value: int) -> Slot:
    slot = engine.slot(shapes(rows))
    slot.inputs["x"][...] = value
    slot.inputs["ids"][...] = value
    return slot


def test_batches_of_all_sizes_lie_at_the_start_of_the_same_memory() -> None:
    engine = Adder()
    places = set()
    for rows in (8, 3, 5, 1, 8):
        slot = filled(engine, rows, rows)
        np.testing.assert_array_equal(slot.run()["y"], np.full(rows, rows * (ITEM + 1), np.float32))
        places.add(memory_of(slot))
        engine.release(slot)
    assert len(places) == 1
    assert engine.made == 4


def test_a_batch_that_does_not_fit_gets_a_larger_memory_and_smaller_ones_move_there() -> None:
    engine = Adder()
    small = filled(engine, 2, 1)
    engine.release(small)
    large = filled(engine, 9, 2)
    engine.release(large)
    again = filled(engine, 2, 3)
    assert memory_of(again) == memory_of(large)
    np.testing.assert_array_equal(again.run()["y"], np.full(2, 12, np.float32))


def test_memory_starts_on_a_cache_line_for_every_input() -> None:
    slot = Adder().slot(shapes(7))
    assert all(array.ctypes.data % 64 == 0 for array in slot.inputs.values())


def test_the_memory_that_has_had_such_a_batch_is_taken_again() -> None:
    engine = Adder()
    first, second = engine.slot(shapes(4)), engine.slot(shapes(2))
    engine.release(first)
    engine.release(second)
    assert engine.slot(shapes(4)) is first
    assert engine.slot(shapes(2)) is second


def test_a_slot_that_cannot_be_made_costs_no_memory() -> None:
    engine = Adder()
    slot = engine.slot(shapes(16))
    engine.release(slot)
    with pytest.raises(EngineRunError):
        engine.slot(shapes(13))
    assert engine.slot(shapes(16)) is slot


def test_forgotten_shapes_are_made_anew_even_where_a_slot_of_them_is_in_use() -> None:
    engine = Adder()
    free, held = engine.slot(shapes(4)), engine.slot(shapes(4))
    engine.release(free)
    engine.forget(shapes(4))
    engine.release(held)
    anew = [engine.slot(shapes(4)) for _ in range(2)]
    assert free not in anew
    assert held not in anew


def test_slots_of_one_memory_have_an_end() -> None:
    engine = Adder()
    first = engine.slot(shapes(1000))
    engine.release(first)
    for rows in range(1, MAX_KEPT_SLOTS + 1):
        if rows != 13:
            engine.release(engine.slot(shapes(rows)))
    kept = engine.slot(shapes(MAX_KEPT_SLOTS))
    engine.release(kept)
    engine.release(engine.slot(shapes(MAX_KEPT_SLOTS + 1)))
    assert engine.slot(shapes(MAX_KEPT_SLOTS)) is kept
    engine.release(kept)
    assert engine.slot(shapes(1000)) is not first


def test_a_closed_engine_hands_out_nothing() -> None:
    engine = Adder()
    slot = engine.slot(shapes(1))
    engine.close()
    engine.release(slot)
    with pytest.raises(EngineRunError, match="closed"):
        engine.slot(shapes(1))


@pytest.mark.parametrize("dropped", ["by closing the engine", "as too many", "by who uses it"])
def test_what_is_done_with_is_gone_without_the_garbage_collector(dropped: str) -> None:
    gc.disable()
    try:
        engine = Adder()
        slots = [engine.slot(shapes(rows)) for rows in (4, 2)]
        known = [weakref.ref(slot) for slot in slots]
        places = [weakref.ref(slot.inputs["x"].base) for slot in slots]
        if dropped != "by who uses it":
            while slots:
                engine.release(slots.pop())
        del slots
        if dropped == "by closing the engine":
            engine.close()
        elif dropped == "as too many":
            # At the same time, and so in memories of their own.
            for slot in [engine.slot(shapes(20 + rows)) for rows in range(MAX_KEPT_SLOTS + 2)]:
                engine.release(slot)
        assert [slot() for slot in known] == [None, None]
        assert [place() for place in places] == [None, None]
    finally:
        gc.enable()
