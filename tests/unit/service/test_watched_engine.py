import time
from pathlib import Path

import numpy as np
import pytest

from engines.errors import EngineRunError
from service.serving.flight import FlightRecorder, Subject, read
from service.serving.watched_engine import WatchedEngine
from tests.unit.service.echo_engine import POISON, EchoEngine


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def watched(tmp_path: Path, engine: EchoEngine, failures: list[str]) -> WatchedEngine:
    flight = FlightRecorder(tmp_path / "flight").entry(Subject(model="m", number=1, build_id="b"))
    return WatchedEngine(engine, flight, failed=lambda: failures.append("failed"))


def rows(*values: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.repeat(np.array(values, np.float32)[:, np.newaxis], 2, axis=1)}


def test_answers_as_the_engine_behind_it(watched: WatchedEngine, engine: EchoEngine) -> None:
    assert (watched.inputs, watched.outputs) == (engine.inputs, engine.outputs)
    assert watched.run(rows(1, 2))["first"].tolist() == [[1], [2]]


def test_says_like_the_engine_behind_it_whether_it_runs_on_a_gpu(tmp_path: Path, engine: EchoEngine) -> None:
    flight = FlightRecorder(tmp_path / "flight").entry(Subject(model="m", number=1, build_id="b"))
    for on_gpu in (True, False):
        engine.on_gpu = on_gpu
        assert WatchedEngine(engine, flight, failed=lambda: None).on_gpu is on_gpu


def test_slots_are_used_again(watched: WatchedEngine, engine: EchoEngine) -> None:
    for _ in range(3):
        watched.run(rows(1))
    assert engine.slots == 1


def test_what_runs_is_on_record_until_it_ends(
    watched: WatchedEngine, engine: EchoEngine, tmp_path: Path
) -> None:
    seen: list[bool] = []
    wait = engine.gate.wait

    def spy(timeout: float | None = None) -> bool:
        seen.extend(flown.running for flown in read(tmp_path / "flight"))
        return wait(timeout)

    engine.gate.wait = spy  # type: ignore[method-assign] # looks on while the engine runs
    watched.run(rows(1))
    assert seen == [True]
    assert [(flown.running, flown.batches) for flown in read(tmp_path / "flight")] == [(False, 1)]


def test_failures_are_reported_and_passed_on(watched: WatchedEngine, failures: list[str]) -> None:
    watched.run(rows(1))
    assert failures == []
    with pytest.raises(EngineRunError, match="poisoned"):
        watched.run(rows(POISON))
    assert failures == ["failed"]


def test_knows_when_it_was_last_used(watched: WatchedEngine) -> None:
    before_s = time.monotonic()
    watched.run(rows(1))
    assert before_s <= watched.used_s <= time.monotonic()


def test_closes_the_engine_and_its_entry(watched: WatchedEngine, engine: EchoEngine, tmp_path: Path) -> None:
    watched.close()
    assert engine.closed == 1
    assert not [flown for flown in read(tmp_path / "flight") if flown.running]
