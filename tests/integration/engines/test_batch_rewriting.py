"""Models of a fixed batch, in onnxruntime and in OpenVINO."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.model.model import load_model
from engines.phases.batch_rewriting import Rewriting, rewrite_batch
from engines.phases.preparing import prepare
from engines.runtimes.openvino import OpenVINORuntime
from engines.samples.importing import import_samples
from tests.unit.engines import odd_graphs
from tests.unit.engines.onnx_graphs import VECTOR_ITEM, GraphBuilder, floats, image_rows, mlp, vector_rows


def rewritten(folder: Path, proto: onnx.ModelProto, rows: int = 8) -> Rewriting:
    uploaded = load_model(proto.SerializeToString())
    item = vector_rows(rows) if uploaded.inputs[0].name == "vector" else image_rows(rows)
    np.save(folder / "samples.npy", item)
    samples = import_samples([folder / "samples.npy"], uploaded.inputs, folder / "samples")
    return rewrite_batch(prepare(uploaded), samples.split().calibrate, OpenVINORuntime(), threads=1)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_fixed_batch_becomes_free(tmp_path: Path, rows: int) -> None:
    result = rewritten(tmp_path, odd_graphs.flattening_net(rows=rows))
    assert (result.reason, result.model.fixed_rows) == (None, None)


def test_a_free_batch_is_left_alone(tmp_path: Path) -> None:
    assert rewritten(tmp_path, mlp()).reason is None


def test_rows_that_would_influence_each_other_keep_the_batch_fixed(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Softmax", ["vector"], "shares", axis=0)
    graph.node("Add", ["shares", "vector"], "scores")
    proto = graph.model([floats("vector", 1, *VECTOR_ITEM)], [floats("scores", 1, *VECTOR_ITEM)])
    result = rewritten(tmp_path, proto)
    assert result.model.fixed_rows == 1
    assert result.reason is not None
    assert result.reason.startswith("a row's 'scores' changes when its batch is")


def test_a_graph_that_reads_one_row_keeps_the_batch_fixed(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Gather", ["vector", graph.constant("first", np.array([0]))], "row", axis=0)
    graph.node("Add", ["row", "vector"], "scores")
    proto = graph.model([floats("vector", 1, *VECTOR_ITEM)], [floats("scores", 1, *VECTOR_ITEM)])
    result = rewritten(tmp_path, proto)
    assert result.reason is not None
    assert result.reason.startswith("a row's 'scores' changes")


def test_what_the_graph_holds_on_to_is_said(tmp_path: Path) -> None:
    graph = GraphBuilder()
    graph.node("Squeeze", ["vector", graph.constant("first", np.array([0]))], "row")
    graph.node("Unsqueeze", ["row", "first"], "scores")
    proto = graph.model([floats("vector", 1, *VECTOR_ITEM)], [floats("scores", 1, *VECTOR_ITEM)])
    assert rewritten(tmp_path, proto).reason == "node 'row_node' (Squeeze) holds on to the batch"


def test_one_sample_proves_nothing(tmp_path: Path) -> None:
    result = rewritten(tmp_path, odd_graphs.flattening_net(rows=1), rows=1)
    assert result.reason == "there are no two samples of one shape to try in one batch"
