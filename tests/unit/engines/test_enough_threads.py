from collections.abc import Mapping

import numpy as np
import pytest

from engines.model.tensors import Array
from engines.runtimes import enough_threads
from engines.runtimes.enough_threads import one_is_enough, takes_long
from tests.unit.service.echo_engine import EchoEngine

FEEDS: Mapping[str, Array] = {"x": np.ones((4, 2), np.float32)}


def taking(monkeypatch: pytest.MonkeyPatch, *milliseconds: float) -> None:
    monkeypatch.setattr(
        enough_threads, "latencies_ms", lambda engines, *_, **__: milliseconds[: len(engines)]
    )


@pytest.mark.parametrize(("taken_ms", "long"), [(0.4, False), (0.6, True)])
def test_threads_are_questioned_for_short_batches_alone(
    monkeypatch: pytest.MonkeyPatch, taken_ms: float, long: bool
) -> None:
    taking(monkeypatch, taken_ms)
    assert takes_long(EchoEngine(), FEEDS) is long


@pytest.mark.parametrize(("one_ms", "enough"), [(0.05, True), (0.109, True), (0.12, False)])
def test_one_thread_is_enough_where_it_keeps_up(
    monkeypatch: pytest.MonkeyPatch, one_ms: float, enough: bool
) -> None:
    taking(monkeypatch, 0.1, one_ms)
    assert one_is_enough(EchoEngine(), EchoEngine(), FEEDS) is enough


def test_what_is_measured_are_the_engines_themselves() -> None:
    engine = EchoEngine()
    takes_long(engine, FEEDS)
    assert set(engine.batches) == {(4, 2)}
