import dataclasses

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.calibration.moments import FEWEST_ROWS, Layer, observe_moments, within_memory
from engines.float8 import float8_grid
from engines.formats import WeightBits, activation_grid, sqnr_db
from engines.model.model import Model, from_proto
from engines.model.tensors import Array
from engines.options import Precision
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.quantization.reconstruction import reconstruct, reconstructible
from engines.quantization.scheme import scheme_of
from engines.quantization.unfolding import unfold
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

THRESHOLD = 4.0


def batches(rows: int, *, seed: int = 1, size: int = 4) -> list[dict[str, Array]]:
    images = onnx_graphs.image_rows(rows, seed=seed)
    return [{"image": images[start : start + size]} for start in range(0, rows, size)]


def quantized(model: Model, bits: WeightBits, *, fit: bool, precision: Precision = Precision.INT8) -> Model:
    placement = place(model, precision=precision)
    thresholds = dict.fromkeys(tensors(placement), THRESHOLD)
    weights = None
    if fit:
        layers = reconstructible(model, placement, thresholds, unsigned=False, precision=precision)
        moments = observe_moments(
            model, layers, batches(64), batch_count=16, threads=1, progress=lambda rows: None
        )
        grid = scheme_of(precision, weight_bits=bits).weights
        weights = reconstruct(model, layers, moments, grid)
    return quantize_model(
        model, placement, thresholds, weight_bits=bits, weights=weights, precision=precision
    )


def answers(model: Model, rows: Array) -> NDArray[np.float64]:
    session = ReferenceSession(model.proto.SerializeToString(), threads=1)
    return np.asarray(session.run({"image": rows})["scores"], np.float64)


@pytest.mark.parametrize(
    "net",
    [onnx_graphs.conv_net, onnx_graphs.residual_net, onnx_graphs.depthwise_net],
    ids=lambda net: net.__name__,
)
@pytest.mark.parametrize("bits", list(WeightBits))
def test_fitted_weights_come_closer_to_fp32_on_fresh_rows(net: object, bits: WeightBits) -> None:
    model = from_proto(net(channels=32) if net is not onnx_graphs.depthwise_net else net())  # type: ignore[operator] # a builder
    fresh = onnx_graphs.image_rows(256, seed=99)
    right = answers(model, fresh)
    plain_db, fitted_db = (
        sqnr_db(right, answers(quantized(model, bits, fit=fit), fresh)) for fit in (False, True)
    )
    assert fitted_db > plain_db + 1


def test_fitted_fp8_weights_come_closer_to_fp32_on_fresh_rows() -> None:
    model = from_proto(onnx_graphs.residual_net(channels=32, opset=21))
    fresh = onnx_graphs.image_rows(256, seed=99)
    right = answers(model, fresh)
    plain, fitted = (
        quantized(model, WeightBits.EIGHT, fit=fit, precision=Precision.FP8) for fit in (False, True)
    )
    onnx.checker.check_model(fitted.proto, full_check=True)
    assert sqnr_db(right, answers(fitted, fresh)) > sqnr_db(right, answers(plain, fresh)) + 1


def test_inputs_of_fp8_layers_are_fitted_on_the_e4m3_grid() -> None:
    model = from_proto(onnx_graphs.conv_net(channels=32))
    placement = place(model, precision=Precision.FP8)
    thresholds = dict.fromkeys(tensors(placement), THRESHOLD)
    [layer] = reconstructible(model, placement, thresholds, unsigned=True, precision=Precision.FP8)
    assert (layer.tensor, layer.grid) == ("relu1", float8_grid(THRESHOLD))


def test_fitted_model_is_valid_and_the_given_one_is_not_changed() -> None:
    model = from_proto(onnx_graphs.residual_net())
    before = model.proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(quantized(model, WeightBits.EIGHT, fit=True).proto, full_check=True)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_mean_of_every_channel_is_that_of_fp32_on_the_calibration_rows() -> None:
    graph = GraphBuilder()
    weight, bias = graph.weight("w", 16, 3, 3, 3), graph.weight("b", 16)
    graph.node("Conv", ["image", weight, bias], "scores", strides=[2, 2])
    model = from_proto(graph.model([floats("image", "n", 3, 8, 8)], [floats("scores", "n", 16, 3, 3)]))
    rows = onnx_graphs.image_rows(64)
    shift = (answers(quantized(model, WeightBits.EIGHT, fit=True), rows) - answers(model, rows)).mean(
        axis=(0, 2, 3)
    )
    plain = (answers(quantized(model, WeightBits.EIGHT, fit=False), rows) - answers(model, rows)).mean(
        axis=(0, 2, 3)
    )
    assert np.abs(shift).max() < 1e-5 < np.abs(plain).max()


def layer() -> tuple[Model, Layer]:
    model = from_proto(onnx_graphs.conv_net())
    node = next(node for node in model.proto.graph.node if node.name == "conv1_node")
    unfolding = unfold(node, (16, 3, 3, 3))
    assert unfolding is not None
    return model, Layer(node=node.name, tensor="image", grid=activation_grid(THRESHOLD), unfolding=unfolding)


def test_a_small_variation_beside_a_large_mean_is_not_lost() -> None:
    """Pooled features of a classifier: the same for all images but for the last digits."""
    graph = GraphBuilder()
    graph.node("Gemm", ["features", graph.weight("w", 64, 16)], "scores")
    model = from_proto(graph.model([floats("features", "n", 64)], [floats("scores", "n", 16)]))
    random = np.random.default_rng(3)
    level = random.normal(0, 1000, 64)
    rows = (level + random.normal(0, 0.5, (32, 64)) * np.sign(level)).astype(np.float32)
    unfolding = unfold(model.proto.graph.node[0], (64, 16))
    assert unfolding is not None
    # A grid so fine that it takes nothing away.
    grid = activation_grid(1e-3 * 127)
    wide = dataclasses.replace(grid, low=-(2**24), high=2**24)
    watched = Layer(node=model.proto.graph.node[0].name, tensor="features", grid=wide, unfolding=unfolding)
    feeds = [{"features": rows[start : start + 4]} for start in range(0, 32, 4)]
    found = observe_moments(model, [watched], feeds, batch_count=8, threads=1, progress=lambda rows: None)
    gram = found[watched.node].centred().gram[0]
    exact = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(gram, exact.T @ exact, atol=0.02 * np.diag(exact.T @ exact).mean())


def test_layers_that_read_the_same_rows_share_their_moments() -> None:
    model, first = layer()
    other = dataclasses.replace(first, node="another")
    coarser = dataclasses.replace(first, node="coarser", grid=activation_grid(2 * THRESHOLD))
    watched = [first, other, coarser]
    found = observe_moments(model, watched, batches(8), batch_count=2, threads=1, progress=lambda rows: None)
    assert found["another"] is found[first.node]
    assert found["coarser"] is not found[first.node]


def test_layers_are_watched_in_parts_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = layer()
    same = dataclasses.replace(first, node="same")
    others = [dataclasses.replace(first, node=f"other{n}", tensor=f"other{n}") for n in range(3)]
    watched = [first, same, *others]
    assert list(within_memory(watched)) == [watched]
    monkeypatch.setattr("engines.calibration.moments.MOST_BYTES", 2 * first.bytes)
    assert list(within_memory(watched)) == [[first, same, others[0]], others[1:]]
    monkeypatch.setattr("engines.calibration.moments.MOST_BYTES", 0)
    assert list(within_memory(watched)) == [[first], [same], *([other] for other in others)]
    assert list(within_memory([])) == []


def test_layers_whose_squares_overflow_keep_their_weights() -> None:
    model, watched = layer()
    feeds: list[dict[str, Array]] = [{"image": onnx_graphs.image_rows(4) * np.float32(1e25)}] * 2
    huge = dataclasses.replace(watched, grid=activation_grid(1e26))
    found = observe_moments(model, [huge], feeds, batch_count=2, threads=1, progress=lambda rows: None)
    assert reconstruct(model, [huge], found, WeightBits.EIGHT) == {}


def test_moments_are_the_sums_of_the_definition() -> None:
    model, watched = layer()
    found = observe_moments(
        model, [watched], batches(8), batch_count=2, threads=1, progress=lambda rows: None
    )[watched.node]
    rows = watched.unfolding.rows(onnx_graphs.image_rows(8))
    coarse = watched.grid.snap(rows)
    assert found.rows == rows.shape[1]
    np.testing.assert_allclose(found.gram, coarse.transpose(0, 2, 1) @ coarse, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.cross, coarse.transpose(0, 2, 1) @ rows, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.exact, rows.sum(axis=1), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(
        found.centred().gram[0], np.cov(coarse[0].T, bias=True) * found.rows, rtol=1e-3, atol=0.1
    )


@pytest.mark.parametrize("varying", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("biased", [True, False])
def test_weights_are_fitted_to_inputs_that_hardly_vary_about_a_large_mean(
    varying: float, biased: bool
) -> None:
    """Of inputs in float32, the sums about the mean are rounding errors, some of them negative."""
    graph = GraphBuilder()
    weight = graph.weight("w", 48, 32)
    if biased:
        graph.node("Gemm", ["x", weight, graph.weight("b", 32)], "scores")
    else:
        graph.node("MatMul", ["x", weight], "scores")
    mean = np.linspace(-900.0, 1000.0, 48, dtype=np.float32)
    model = from_proto(graph.model([floats("x", "n", 48)], [floats("scores", "n", 32)]))
    noise = np.random.default_rng(3).normal(size=(256, 48)).astype(np.float32)
    rows = mean * (1 + np.float32(varying) * noise)
    placement = place(model)
    layers = reconstructible(model, placement, {"x": 1000.0}, unsigned=False)
    feeds = [{"x": rows[start : start + 8]} for start in range(0, 256, 8)]
    moments = observe_moments(model, layers, feeds, batch_count=32, threads=1, progress=lambda rows: None)
    weights = reconstruct(model, layers, moments, WeightBits.EIGHT)
    fitted = quantize_model(model, placement, {"x": 1000.0}, weight_bits=WeightBits.EIGHT, weights=weights)
    right, found = (
        ReferenceSession(each.proto.SerializeToString(), threads=1).run({"x": rows})["scores"]
        for each in (model, fitted)
    )
    assert sqnr_db(right, found) > 40


def test_rows_of_a_layer_are_bounded_however_many_samples_there_are() -> None:
    model, watched = layer()
    many = observe_moments(
        model, [watched], batches(512), batch_count=128, threads=1, progress=lambda rows: None
    )[watched.node]
    assert FEWEST_ROWS <= many.rows < 1.1 * FEWEST_ROWS


def test_non_negative_inputs_are_fitted_to_the_unsigned_grid() -> None:
    model = from_proto(onnx_graphs.conv_net())
    placement = place(model)
    thresholds = dict.fromkeys(tensors(placement), THRESHOLD)
    found = {
        layer.tensor: layer.grid for layer in reconstructible(model, placement, thresholds, unsigned=True)
    }
    assert found["image"] == activation_grid(THRESHOLD)
    assert found["relu1"] == activation_grid(THRESHOLD, unsigned=True)
    assert found["relu1"].scale == pytest.approx(THRESHOLD / 255)


def test_layers_that_have_no_bias_get_one_where_the_operator_has_a_place_for_it() -> None:
    model = from_proto(onnx_graphs.residual_net())
    result = quantized(model, WeightBits.EIGHT, fit=True).proto
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Conv":
            assert numpy_helper.to_array(constants[node.input[2]]).shape == (16,)
