from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
import pytest

from engines.calibration.histogram import Histogram
from engines.calibration.observer import observe
from engines.errors import CalibrationError
from engines.model.model import from_proto
from engines.model.tensors import Array
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def watch(
    proto: onnx.ModelProto,
    tensors: list[str],
    batches: Iterable[Mapping[str, Array]],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Histogram]:
    return observe(from_proto(proto), tensors, batches, threads=2, progress=progress)


def equal(first: Histogram, second: Histogram) -> bool:
    return all(np.array_equal(value, second.to_arrays()[key]) for key, value in first.to_arrays().items())


def test_every_tensor_is_counted_over_all_batches_inputs_and_outputs_included() -> None:
    proto = onnx_graphs.conv_net()
    rows = onnx_graphs.image_rows(12)
    names = ["image", "relu1", "scores"]
    found = watch(proto, names, [{"image": rows[start : start + 4]} for start in (0, 4, 8)])
    session = ReferenceSession(proto.SerializeToString(), outputs=names, threads=2, fused=True)
    parts = [session.run({"image": rows[start : start + 4]}) for start in (0, 4, 8)]
    for name in names:
        assert equal(found[name], Histogram.of(np.concatenate([part[name] for part in parts])))


def test_progress_counts_rows() -> None:
    seen: list[int] = []
    rows = onnx_graphs.image_rows(10)
    watch(onnx_graphs.conv_net(), ["relu1"], [{"image": rows[:4]}, {"image": rows[4:]}], seen.append)
    assert seen == [4, 10]


def test_batches_are_taken_one_at_a_time() -> None:
    taken = []

    def batches() -> Iterator[Mapping[str, Array]]:
        for number in range(3):
            taken.append(number)
            yield {"image": onnx_graphs.image_rows(2)}

    states = []
    watch(onnx_graphs.conv_net(), ["relu1"], batches(), lambda rows: states.append((rows, len(taken))))
    assert states == [(2, 1), (4, 2), (6, 3)]


def test_tensor_that_is_not_finite_is_named_with_its_rows() -> None:
    graph = GraphBuilder()
    graph.node("Log", ["x"], "logarithm")
    graph.node("Relu", ["logarithm"], "y")
    proto = graph.model([floats("x", "n", 2)], [floats("y", "n", 2)])
    batches = [{"x": np.ones((2, 2), np.float32)}, {"x": np.zeros((3, 2), np.float32)}]
    with pytest.raises(CalibrationError, match=r"'logarithm' is not finite .*6 of 6 values .* rows 2 to 4"):
        watch(proto, ["logarithm"], batches)
