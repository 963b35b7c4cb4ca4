"""Rows of different lengths in one batch: from the samples of a build to the engine that answers."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.building import quantize
from engines.loading import LoadedEngine, load_engine
from engines.options import BuildOptions, Effort
from engines.proof.padding import Padding
from engines.reports.report import Report
from tests.unit.engines.text_graphs import encoder, sentences

OPTIONS = BuildOptions(effort=Effort.FAST)


def built(folder: Path, model: onnx.ModelProto) -> tuple[Report, LoadedEngine]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    files = []
    for length in (6, 20):
        files.append(folder / f"{length}.npz")
        np.savez(files[-1], allow_pickle=False, **sentences(40, length, seed=length))
    report = quantize(path, files, folder / "build", OPTIONS, threads=1)
    return report, load_engine(folder / "build", OPTIONS, threads=1)


def test_the_mask_is_found_and_the_longest_rows_are_proven(tmp_path: Path) -> None:
    report, loaded = built(tmp_path, encoder())
    with loaded.engine as engine:
        assert loaded.padding == Padding(mask="mask", inputs={"ids": 1, "mask": 1}, outputs={}, longest=20)
        assert (report.batching.mask, report.batching.unpadded) == ("mask", None)
        short = sentences(1, 9, seed=7)
        padded = {name: np.pad(array, ((0, 0), (0, 11))) for name, array in short.items()}
        alone, together = engine.run(short)["scores"], engine.run(padded)["scores"]
    assert together == pytest.approx(alone, rel=1e-2, abs=1e-3)


def test_a_model_that_does_not_heed_its_mask_is_not_padded_and_the_report_says_why(tmp_path: Path) -> None:
    report, loaded = built(tmp_path, encoder(masked=False))
    loaded.engine.close()
    assert loaded.padding is None
    assert loaded.batchable
    assert report.batching.mask is None
    assert str(report.batching.unpadded).startswith("a row's 'scores' changes when it is padded with zeros")
