"""Of how many threads a loaded engine is."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines import loading
from engines.building import quantize
from engines.loading import load_engine
from engines.options import BuildOptions
from engines.runtimes.base import Engine
from engines.runtimes.fit import Fit
from engines.runtimes.openvino import OpenVINORuntime
from tests.unit.engines.onnx_graphs import conv_net, image_rows

OPTIONS = {
    precision: BuildOptions.parse(
        {"precision": precision, "effort": "fast", "batching": {"max_batch_rows": 4}}
    )
    for precision in ("int8", "fp32")
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Engine]]:
    """The engines that were compiled, with their threads."""
    seen: list[tuple[int, Engine]] = []
    plain = OpenVINORuntime.compile

    def noted(self: OpenVINORuntime, model: Path, *, threads: int, **others: Any) -> Engine:
        engine = plain(self, model, threads=threads, **others)
        seen.append((threads, engine))
        return engine

    monkeypatch.setattr(OpenVINORuntime, "compile", noted)
    return seen


def build(folder: Path, precision: str) -> None:
    onnx.save(conv_net(), folder / "model.onnx")
    np.savez(folder / "samples.npz", image=image_rows(40))
    quantize(folder / "model.onnx", [folder / "samples.npz"], folder / "build", OPTIONS[precision], threads=1)


@pytest.mark.parametrize("precision", OPTIONS)
@pytest.mark.parametrize("enough", [True, False])
def test_an_engine_has_one_thread_where_more_are_no_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled: list[tuple[int, Engine]],
    precision: str,
    enough: bool,
) -> None:
    build(tmp_path, precision)
    compiled.clear()
    monkeypatch.setattr(loading, "takes_long", lambda *_: False)
    monkeypatch.setattr(loading, "one_is_enough", lambda *_: enough)
    loaded = load_engine(tmp_path / "build", OPTIONS[precision], threads=2)
    with loaded.engine:
        assert [threads for threads, _ in compiled] == [2, 1]
        assert loaded.engine is compiled[enough][1]
        assert loaded.verification.holds
        assert loaded.fit.threads == (1 if enough else 2)


@pytest.mark.parametrize("precision", OPTIONS)
def test_what_is_known_to_suit_an_engine_is_not_found_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[int, Engine]], precision: str
) -> None:
    build(tmp_path, precision)
    compiled.clear()
    for name in ("takes_long", "one_is_enough"):
        monkeypatch.setattr(loading, name, None)
    for fit in (Fit(threads=1, gains={}), Fit(threads=2, gains={2: 1.25})):
        loaded = load_engine(tmp_path / "build", OPTIONS[precision], threads=2, fit=fit)
        with loaded.engine:
            assert loaded.fit == fit
            assert loaded.verification.holds
    assert [threads for threads, _ in compiled] == [1, 2]


def test_no_other_engine_is_tried_where_batches_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[int, Engine]]
) -> None:
    build(tmp_path, "fp32")
    compiled.clear()
    monkeypatch.setattr(loading, "takes_long", lambda *_: True)
    load_engine(tmp_path / "build", OPTIONS["fp32"], threads=2).engine.close()
    assert [threads for threads, _ in compiled] == [2]
