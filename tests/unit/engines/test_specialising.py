"""Which batch sizes are compiled for: engines whose times and answers are made up."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from engines.errors import CompileError
from engines.model.tensors import Array, TensorSpec
from engines.proof.company import EIGHT_BIT_DB
from engines.runtimes.base import Slot
from engines.runtimes.slots import PooledEngine
from engines.runtimes.specialising import MAX_SPECIAL_BYTES, specialise, worth_running

ROWS = {"x": np.ones((2, 3), np.float32)}


class Sleeper(PooledEngine):
    """Says how long its batches take, and takes no time."""

    def __init__(
        self, *, special_s: float, error: float = 0.0, fails: bool = False, offers: bool = True
    ) -> None:
        x, y = (TensorSpec(name=name, dtype=np.dtype(np.float32), shape=(None, 3)) for name in "xy")
        super().__init__((x,), (y,))
        self.special: set[int] = set()
        self.tried: list[int] = []
        self.special_s, self.error, self.fails, self.offers = special_s, error, fails, offers

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        return Nap(self, shapes["x"])

    def specialise(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        self.tried.append(shapes["x"][0])
        if self.fails:
            raise CompileError("it throws at every batch of its own")
        if self.offers:
            self.special.add(shapes["x"][0])
            self.forget(shapes)
        return self.offers

    def generalise(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.special.discard(shapes["x"][0])
        self.forget(shapes)


class Nap:
    """One batch; general ones take 4 ms."""

    def __init__(self, engine: Sleeper, shape: tuple[int, ...]) -> None:
        self.inputs: Mapping[str, Array] = {"x": np.zeros(shape, np.float32)}
        self.seconds, self.error = 0.004, 0.0
        if shape[0] in engine.special:
            self.seconds, self.error = engine.special_s, engine.error

    def run(self) -> Mapping[str, Array]:
        x = self.inputs["x"].astype(np.float32)
        return {"y": 2 * x + np.float32(self.error)}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the engine's word for how long it runs."""

    def told(slots: Sequence[Nap], *, budget_s: float) -> list[float]:
        return [slot.seconds * 1e3 for slot in slots]

    monkeypatch.setattr("engines.runtimes.specialising.slots_ms", told)


def tried(
    engine: Sleeper, *, weights_bytes: int = 1000, known: Mapping[int, float] | None = None
) -> dict[int, float]:
    return specialise(
        engine, ROWS, max_rows=8, weights_bytes=weights_bytes, least_db=EIGHT_BIT_DB, known=known
    )


def test_sizes_that_gain_are_kept() -> None:
    engine = Sleeper(special_s=0.001)
    gains = tried(engine)
    assert set(gains) == engine.special == {1, 2, 4, 8}
    assert set(gains.values()) == {4.0}
    slot = engine.slot({"x": (8, 3)})
    assert isinstance(slot, Nap)
    assert slot.seconds == 0.001


def test_what_is_known_to_gain_is_compiled_for_and_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engines.runtimes.specialising.slots_ms", None)  # nothing is timed
    engine, known = Sleeper(special_s=0.008), {1: 1.2, 4: 1.5}
    assert tried(engine, known=known) == known
    assert engine.special == {1, 4}
    assert tried(Sleeper(special_s=0.001), known={}) == {}


def test_what_was_known_to_gain_and_answers_otherwise_now_is_not_kept() -> None:
    engine = Sleeper(special_s=0.001, error=0.5)
    assert tried(engine, known={4: 1.5}) == {}
    assert (engine.tried, engine.special) == ([4], set())


def test_sizes_that_do_not_gain_run_as_before() -> None:
    engine = Sleeper(special_s=0.008)
    assert tried(engine) == {}
    assert engine.special == set()
    slot = engine.slot({"x": (8, 3)})
    assert isinstance(slot, Nap)
    assert slot.seconds == 0.004


def test_sizes_that_answer_otherwise_are_not_kept_however_fast() -> None:
    engine = Sleeper(special_s=0.0001, error=0.5)
    assert tried(engine) == {}
    assert engine.special == set()


def test_a_runtime_that_fails_once_is_not_asked_again() -> None:
    engine = Sleeper(special_s=0.001, fails=True)
    assert tried(engine) == {}
    assert engine.tried == [1]


def test_an_engine_that_has_nothing_to_offer_is_asked_once() -> None:
    engine = Sleeper(special_s=0.001, offers=False)
    assert tried(engine) == {}
    assert engine.tried == [1]


def test_the_weights_of_all_sizes_are_bounded() -> None:
    engine = Sleeper(special_s=0.001)
    assert set(tried(engine, weights_bytes=MAX_SPECIAL_BYTES // 2)) == {1, 8}
    assert tried(Sleeper(special_s=0.001), weights_bytes=MAX_SPECIAL_BYTES + 1) == {}


@pytest.mark.parametrize(
    ("gains", "left"),
    [
        ({}, (1, 2, 3, 4, 5, 6, 7, 8)),
        ({8: 1.2}, (1, 2, 3, 4, 5, 6, 8)),
        ({8: 1.5}, (1, 2, 3, 4, 5, 8)),
        ({4: 1.4, 8: 1.2}, (1, 2, 4, 5, 6, 8)),
    ],
)
def test_sizes_that_are_slower_than_padded_to_a_special_one_are_left_out(
    gains: dict[int, float], left: tuple[int, ...]
) -> None:
    assert worth_running((1, 2, 3, 4, 5, 6, 7, 8), gains) == left
