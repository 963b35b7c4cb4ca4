"""Brief timings of engines."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import EngineRunError
from engines.reports.latency import latencies_ms, repeated
from engines.runtimes.base import Engine
from engines.runtimes.reference import ReferenceRuntime
from tests.unit.engines.onnx_graphs import mlp, vector_rows


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    onnx.save(mlp(), tmp_path / "model.onnx")
    return ReferenceRuntime().compile(tmp_path / "model.onnx", threads=1)


def test_each_engine_gets_a_time_and_its_slot_back(engine: Engine) -> None:
    feeds = {"vector": vector_rows(4)}
    slot = engine.slot({"vector": (4, 12)})
    engine.release(slot)
    times_ms = latencies_ms([engine, engine], feeds, budget_s=0.01)
    assert len(times_ms) == 2
    assert all(0 < value < 1000 for value in times_ms)
    held = [engine.slot({"vector": (4, 12)}) for _ in range(2)]
    assert slot in held


def test_a_run_longer_than_the_budget_is_timed_once(engine: Engine) -> None:
    assert len(latencies_ms([engine], {"vector": vector_rows(4)}, budget_s=0.0)) == 1


def test_a_batch_that_does_not_fit_is_an_engine_error(engine: Engine) -> None:
    with pytest.raises(EngineRunError):
        latencies_ms([engine], {"vector": np.zeros((4, 11), np.float32)}, budget_s=0.01)


def test_rows_are_repeated_or_cut_to_the_batch() -> None:
    rows = np.arange(6).reshape(3, 2)
    assert repeated({"x": rows}, 5)["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert repeated({"x": rows}, 1)["x"].tolist() == [[0, 1]]
