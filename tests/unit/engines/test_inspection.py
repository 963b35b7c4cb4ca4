import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import InvalidModelError
from engines.model.inspection import Inspection, inspect
from engines.options import Precision
from tests.unit.engines import onnx_graphs


def look(folder: Path, model: onnx.ModelProto) -> Inspection:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return inspect(path)


def test_it_tells_what_a_model_takes_gives_and_is_made_of(tmp_path: Path) -> None:
    found = look(tmp_path, onnx_graphs.conv_net())
    assert (found.inputs, found.outputs) == (("image float32 [?, 3, 8, 8]",), ("scores float32 [?, 4]",))
    assert found.opset == onnx_graphs.DEFAULT_OPSET
    assert found.file_bytes == (tmp_path / "model.onnx").stat().st_size
    assert list(found.operators.items())[:2] == [("Conv", 2), ("Relu", 2)]
    assert sum(found.operators.values()) == 7
    weights = 16 * 3 * 9 + 16 * 16 * 9
    assert found.parameters == weights + 16 + 16 + 4 * 16 + 4
    assert found.quantized_parameters == weights


def test_it_tells_what_would_be_quantized_and_why_the_rest_would_not(tmp_path: Path) -> None:
    found = look(tmp_path, onnx_graphs.conv_net())
    assert [(layer.node, layer.operator, layer.shape) for layer in found.quantized] == [
        ("conv1_node", "Conv", (16, 3, 3, 3)),
        ("conv2_node", "Conv", (16, 16, 3, 3)),
    ]
    assert [(layer.operator, layer.reason) for layer in found.skipped] == [
        ("Gemm", "its weights are too small (4 x 16) to gain from 8 bits")
    ]
    assert found.activations == 2
    assert Inspection.model_validate(json.loads(found.model_dump_json())) == found


def test_it_tells_what_the_precision_asked_for_would_take(tmp_path: Path) -> None:
    assert look(tmp_path, onnx_graphs.conv_net()).quantized
    found = inspect(tmp_path / "model.onnx", Precision.FP8)
    assert [layer.node for layer in found.skipped if "to gain from FP8" in layer.reason] == [
        "conv1_node",
        "conv2_node",
    ]


def test_weights_that_layers_share_count_once(tmp_path: Path) -> None:
    graph = onnx_graphs.GraphBuilder()
    weight = graph.weight("weight", 16, 16)
    graph.node("MatMul", ["x", weight], "once")
    graph.node("MatMul", ["once", weight], "twice")
    inputs, outputs = [onnx_graphs.floats("x", "n", 16)], [onnx_graphs.floats("twice", "n", 16)]
    found = look(tmp_path, graph.model(inputs, outputs))
    assert (len(found.quantized), found.parameters, found.quantized_parameters) == (2, 256, 256)


def test_constants_that_are_no_floats_are_no_parameters(tmp_path: Path) -> None:
    graph = onnx_graphs.GraphBuilder()
    shape = graph.constant("shape", np.array([-1, 12], np.int64))
    graph.node("Reshape", ["vector", shape], "scores")
    found = look(
        tmp_path,
        graph.model([onnx_graphs.floats("vector", "n", 12)], [onnx_graphs.floats("scores", "n", 12)]),
    )
    assert (found.parameters, found.quantized, found.skipped) == (0, (), ())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(InvalidModelError, match="PNG"):
        inspect(path)
