"""The error by layer: measured at the right tensors, on few rows, and silent about what cannot be compared."""

import math
from pathlib import Path

import numpy as np
import pytest

from engines.fidelity.accuracy import BEST_DB, to_db
from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.quantization.smoothing import Choice, rewrite
from engines.reports.layer_errors import MAX_ROWS, _energies, layer_errors, quantized_layers
from engines.runtimes.reference import ReferenceSession
from engines.samples.importing import SampleView, import_samples
from tests.unit.engines import onnx_graphs


@pytest.fixture
def model() -> Model:
    return prepare(from_proto(onnx_graphs.conv_net()))


def rows_of(model: Model, folder: Path, rows: int = 160) -> SampleView:
    (given,) = model.inputs
    make = onnx_graphs.image_rows if given.name == "image" else onnx_graphs.vector_rows
    np.savez(folder / "rows.npz", allow_pickle=False, **{given.name: make(rows)})
    return import_samples([folder / "rows.npz"], model.inputs, folder / "samples").split().tune


def in_8_bits(model: Model, **thresholds: float) -> Model:
    placement = place(model)
    chosen = dict.fromkeys(tensors(placement), 4.0) | thresholds
    return quantize_model(model, placement, chosen, weight_bits=8)


def test_each_layer_is_measured_at_its_output_in_graph_order(model: Model, tmp_path: Path) -> None:
    rows = rows_of(model, tmp_path)
    quantized = in_8_bits(model)
    found = layer_errors(model, quantized, rows, threads=1)
    assert [(layer.node, layer.operator) for layer in found.layers] == [
        ("conv1_node", "Conv"),
        ("conv2_node", "Conv"),
    ]
    feeds = [batch for batch, _ in zip(rows.batches(4), range(4), strict=False)]
    for layer, tensor in zip(found.layers, ("conv1", "conv2"), strict=True):
        right, other = (
            np.concatenate([session.run(batch)[tensor] for batch in feeds]).astype(np.float64)
            for session in (
                ReferenceSession(each.proto.SerializeToString(), outputs=[tensor], threads=1)
                for each in (model, quantized)
            )
        )
        expected = to_db(float((right**2).sum()), float(((right - other) ** 2).sum()))
        assert layer.sqnr_db == pytest.approx(expected, abs=0.01)


def test_a_clipped_activation_shows_at_its_layer_and_behind_it(model: Model, tmp_path: Path) -> None:
    rows = rows_of(model, tmp_path)
    fine = layer_errors(model, in_8_bits(model), rows, threads=1)
    clipped = layer_errors(model, in_8_bits(model, relu1=0.1), rows, threads=1)
    assert clipped.layers[0] == fine.layers[0]
    assert clipped.layers[1].sqnr_db < fine.layers[1].sqnr_db - 10


def test_few_rows_are_enough(model: Model, tmp_path: Path) -> None:
    rows = rows_of(model, tmp_path)
    assert rows.rows > MAX_ROWS
    quantized = in_8_bits(model)
    assert layer_errors(model, quantized, rows, threads=1).rows == MAX_ROWS
    hurried = layer_errors(model, quantized, rows, threads=1, budget_s=-1.0)
    assert (hurried.rows, len(hurried.layers)) == (4, 2)


def test_rows_that_fill_a_fixed_batch_are_not_counted(tmp_path: Path) -> None:
    model = prepare(from_proto(onnx_graphs.conv_net(rows=3)))
    rows = rows_of(model, tmp_path, rows=16)
    assert rows.rows == 4
    assert layer_errors(model, in_8_bits(model), rows, threads=1).rows == 4


def test_a_model_without_8_bit_layers_has_no_errors(model: Model, tmp_path: Path) -> None:
    found = layer_errors(model, model, rows_of(model, tmp_path), threads=1)
    assert (found.rows, found.layers) == (0, ())


def test_layers_that_stayed_floating_are_left_out(model: Model) -> None:
    placement = place(model, exclude=frozenset({"conv2_node"}))
    quantized = quantize_model(model, placement, {"image": 4.0}, weight_bits=8)
    assert quantized_layers(model, quantized) == {"conv1": ("conv1_node", "Conv")}


def test_layers_whose_output_is_gone_are_left_out(model: Model) -> None:
    quantized = in_8_bits(model)
    for node in quantized.proto.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "other" if name == "conv1" else name
    assert list(quantized_layers(model, quantized)) == ["conv2"]


def test_a_product_whose_outliers_were_separated_is_measured_whole(tmp_path: Path) -> None:
    model = prepare(from_proto(onnx_graphs.matmul_net(hidden=32, classes=20)))
    choice = Choice(
        alpha=0.5, divisors=np.ones(32, np.float32), outliers=(3,), error_before=1.0, error_after=0.5
    )
    quantized = in_8_bits(rewrite(model, {"relu": choice}), relu_smoothed=4.0)
    found = layer_errors(model, quantized, rows_of(model, tmp_path), threads=1)
    assert [layer.operator for layer in found.layers] == ["MatMul"]
    assert 20 < found.layers[0].sqnr_db < BEST_DB


def test_values_that_are_not_finite_are_the_worst_noise_or_none() -> None:
    right = np.array([1.0, np.inf, 2.0], np.float32)
    assert _energies(right, np.array([1.0, 7.0, 1.0], np.float32)) == (5.0, 1.0)
    assert _energies(right, np.array([1.0, 7.0, np.nan], np.float32)) == (5.0, math.inf)
    assert to_db(5.0, math.inf) == -BEST_DB
