"""What the calibration writes beside the histograms."""

from pathlib import Path

import numpy as np
import pytest

from engines.calibration.magnitudes import noted_magnitudes
from engines.options import BuildOptions, CalibrationMethod, Precision
from engines.phases.calibrating import calibrate, read_observed
from engines.pipeline import PHASES
from engines.runtimes.openvino import OpenVINORuntime
from engines.search.plan import Plan
from engines.workspace import UPLOADED_MODEL, Workspace
from tests.unit.engines import onnx_graphs


class Halving(OpenVINORuntime):
    """Says that it computes in 16-bit floats what is not quantized."""

    halves_rest = True


@pytest.mark.parametrize(
    ("runtime", "rest", "noted"),
    [(Halving(), "fp16", True), (Halving(), "fp32", False), (OpenVINORuntime(), "fp16", False)],
)
def test_magnitudes_go_into_the_artifact_where_the_engine_will_use_them(
    tmp_path: Path, runtime: OpenVINORuntime, rest: str, noted: bool
) -> None:
    workspace = Workspace(tmp_path)
    workspace.path(UPLOADED_MODEL).write_bytes(onnx_graphs.conv_net(channels=32).SerializeToString())
    np.savez(workspace.path("upload/samples-0.npz"), allow_pickle=False, image=onnx_graphs.image_rows(40))
    options = BuildOptions.parse({"effort": "fast", "rest": rest})
    for phase in PHASES[:2]:
        phase.run(workspace, options, lambda _: None)
    calibrate(workspace, options, runtime, lambda _: None)
    (observed,) = read_observed(workspace)
    plan = Plan.of(observed, CalibrationMethod.MAX, precision=Precision.INT8, runtime=runtime)
    found = noted_magnitudes(plan.write().proto)
    assert (found is not None) == noted
    if found is not None:
        assert {"image", "conv1", "relu2", "scores"} <= set(found)
        assert found["relu1"] == float(f"{observed.histograms['relu1'].absmax:.3g}")
