import numpy as np
import onnx

from engines.calibration.magnitudes import noted_magnitudes, observe_magnitudes, with_magnitudes
from engines.model.model import from_proto
from engines.phases.preparing import prepare
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def test_every_floating_tensor_is_seen_over_all_batches_inputs_and_outputs_included() -> None:
    model = prepare(from_proto(onnx_graphs.conv_net()))
    rows = onnx_graphs.image_rows(8)
    rows[5] *= 7
    found = observe_magnitudes(model, [{"image": rows[:4]}, {"image": rows[4:]}], threads=1)
    values = ReferenceSession(model.proto, outputs=list(found), threads=1).run({"image": rows})
    assert set(found) >= {"image", "conv1", "relu1", "conv2", "relu2", "pooled", "flat", "scores"}
    for name, largest in found.items():
        np.testing.assert_allclose(largest, np.abs(values[name]).max(), rtol=6e-3)
    assert found["image"] == float(f"{np.abs(rows).max():.3g}")


def test_a_tensor_that_was_not_finite_is_left_out() -> None:
    graph = GraphBuilder(opset=21)
    graph.node("Log", ["x"], "logarithm")
    graph.node("Add", ["x", "x"], "y")
    proto = graph.model([floats("x", "n", 2)], [floats("logarithm", "n", 2), floats("y", "n", 2)])
    for value in (0.0, -1.0):
        batches = [{"x": np.array([[value, 1]], np.float32)}, {"x": np.ones((1, 2), np.float32)}]
        assert observe_magnitudes(from_proto(proto), batches, threads=1) == {"x": 1.0, "y": 2.0}


def test_a_model_carries_its_magnitudes_into_its_file_and_the_one_before_stays_as_it_was() -> None:
    model = from_proto(onnx_graphs.conv_net())
    noted = with_magnitudes(model, {"image": 3.5, "conv1": 1e-30})
    assert noted_magnitudes(onnx.ModelProto.FromString(noted.proto.SerializeToString())) == {
        "image": 3.5,
        "conv1": 1e-30,
    }
    assert noted_magnitudes(model.proto) is None
