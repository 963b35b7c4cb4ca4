"""The trivial model as what octet takes: an ONNX file and samples."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtests.fronts.model import FEATURES, SCORES, WEIGHT


def write_model(path: Path) -> None:
    """Writes the model with a free batch: "x" [N, 16] to "scores" [N, 4]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", SCORES])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def write_samples(path: Path) -> None:
    """Writes 256 rows as an npz."""
    rows = np.random.default_rng(9).standard_normal((256, FEATURES)).astype(np.float32)
    np.savez(path, x=rows)
