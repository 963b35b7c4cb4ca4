from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.fidelity.accuracy import BEST_DB
from engines.model.model import Model, from_proto
from engines.options import Metric
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.runtimes.reference import ReferenceRuntime
from engines.samples.importing import SampleView, import_samples
from engines.search.tuning import Tuner
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


def test_outputs_that_are_zero_throughout_do_not_hide_how_good_the_others_are(
    samples: SampleView, tmp_path: Path
) -> None:
    proto = onnx_graphs.conv_net()
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    proto.graph.initializer.append(zero)
    proto.graph.node.append(onnx.helper.make_node("Mul", ["scores", "zero"], ["alarm"], name="alarm_node"))
    proto.graph.output.append(onnx_graphs.floats("alarm", "n", 4))
    model = from_proto(proto)
    noisy = from_proto(at(model, 4.0).proto)
    # As engines leave it of a sum that should be zero.
    for tensor in noisy.proto.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(1, 1e-9, np.float32), "zero"))
    measured = Tuner(model, samples, runtime=ReferenceRuntime(), threads=1).measure(noisy)
    assert measured.accuracy is not None
    assert measured.accuracy.value(Metric.SQNR_DB) == -BEST_DB
    assert measured.sqnr_db > 20


def test_rows_that_fill_a_fixed_batch_do_not_count(samples: SampleView) -> None:
    proto = onnx_graphs.conv_net()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    model = from_proto(proto)
    accuracy = Tuner(model, samples, runtime=ReferenceRuntime(), threads=1).measure(model).accuracy
    assert accuracy is not None
    assert [output.rows for output in accuracy.outputs] == [samples.rows]


@pytest.mark.parametrize(("kept_rows", "counted"), [(1000, 10), (8, 8), (3, 3), (0, 1)])
def test_what_is_kept_in_memory_is_bounded_however_large_a_row_is(
    model: Model, samples: SampleView, monkeypatch: pytest.MonkeyPatch, kept_rows: int, counted: int
) -> None:
    row_bytes = 4 * (3 * 8 * 8 + 4)
    monkeypatch.setattr("engines.search.tuning.MAX_TUNE_BYTES", kept_rows * row_bytes)
    accuracy = Tuner(model, samples, runtime=ReferenceRuntime(), threads=1).measure(model).accuracy
    assert accuracy is not None
    assert accuracy.outputs[0].rows == counted
