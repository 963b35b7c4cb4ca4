from pathlib import Path

import numpy as np
import pytest

from engines.accuracy import BEST_DB
from engines.model import Model, from_proto
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.runtimes.reference import ReferenceRuntime
from engines.samples import SampleView, import_samples
from engines.tuning import Tuner
from tests.unit.engines import onnx_graphs


@pytest.fixture
def model() -> Model:
    return from_proto(onnx_graphs.conv_net())


@pytest.fixture
def samples(model: Model, tmp_path: Path) -> SampleView:
    np.savez(tmp_path / "rows.npz", image=onnx_graphs.image_rows(40))
    return import_samples([tmp_path / "rows.npz"], model.inputs, tmp_path / "samples").split().tune


@pytest.fixture
def tuner(model: Model, samples: SampleView) -> Tuner:
    return Tuner(model, samples, runtime=ReferenceRuntime(), threads=1)


def at(model: Model, threshold: float) -> Model:
    placement = place(model)
    return quantize_model(model, placement, dict.fromkeys(tensors(placement), threshold), weight_bits=8)


def test_fp32_itself_has_no_noise(tuner: Tuner, model: Model) -> None:
    measured = tuner.measure(model)
    assert measured.sqnr_db == BEST_DB
    assert measured.size_bytes == len(model.proto.SerializeToString(deterministic=True))
    assert measured.batch_ms is not None


def test_model_closer_to_fp32_measures_better(tuner: Tuner, model: Model) -> None:
    clipped, fitting = tuner.measure(at(model, 0.2)), tuner.measure(at(model, 4.0))
    assert fitting.sqnr_db > clipped.sqnr_db + 10


def test_measures_on_the_tune_rows_alone(tuner: Tuner, model: Model, samples: SampleView) -> None:
    accuracy = tuner.measure(model).accuracy
    assert accuracy is not None
    assert [output.rows for output in accuracy.outputs] == [samples.rows]


def test_model_that_cannot_run_measures_worst_but_does_not_fail_the_build(tuner: Tuner, model: Model) -> None:
    broken = from_proto(model.proto)
    broken.proto.graph.node[0].op_type = "Frobnicate"
    measured = tuner.measure(broken)
    assert (measured.accuracy, measured.batch_ms, measured.sqnr_db) == (None, None, -BEST_DB)
