"""8-bit engines on a processor without VNNI, where sums of 8-bit products saturate.

oneDNN takes an older processor's kernels where `ONEDNN_MAX_CPU_ISA` says so, in a process of its own: so the
tests of the pipeline run here once more, and what goes wrong there with 8-bit weights is shown.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.building import quantize
from engines.options import BuildOptions
from engines.runtimes.openvino import OpenVINORuntime
from engines.workspace import QUANTIZED
from tests.unit.engines.onnx_graphs import conv_net

ROOT = Path(__file__).parents[3]
OPTIONS = BuildOptions.parse({"batching": {"max_batch_rows": 1}})

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="only x86 processors have AVX2 to fall back to"
)

# How samples are cut, what files are there, what is said.
NO_KERNELS = (
    "labels_put", "bytes_are_the_same", "writes_the_same_bytes", "earlier_build", "progress_names", "bad_input",
    "missing_or_changed", "chosen_on_the_verify_rows",
)  # fmt: skip

BUILD_WITH_BITS = """
import json, sys
from pathlib import Path
from engines import pipeline
from engines.building import quantize
from engines.model.model import load_model, save_model
from engines.options import BuildOptions
from engines.quantization.placement import place
from engines.quantization.qdq import quantize_model
from engines.reports.report import Report
from engines.runtimes.openvino import OpenVINORuntime
from engines.workspace import CALIBRATION, PREPARED, QUANTIZED, REPORT, Workspace

model, samples, folder = map(Path, sys.argv[1:])
options = BuildOptions.parse({"batching": {"max_batch_rows": 1}})
workspace = Workspace(folder)
found = {"bits": OpenVINORuntime().weight_bits()}
report = quantize(model, [samples], folder, options, threads=1)
found[str(report.hardware.weight_bits)] = report.summary() | {"value": report.quantized.value}
prepared = load_model(folder / PREPARED)
table = json.loads((folder / CALIBRATION).read_text())["tensors"]
thresholds = {name: entry["threshold"] for name, entry in table.items()}
save_model(quantize_model(prepared, place(prepared), thresholds, weight_bits=8), folder / QUANTIZED)
pipeline.verify(workspace, options, lambda done: None)
report = Report.load(folder / REPORT)
found["8"] = report.summary() | {"value": report.quantized.value}
print(json.dumps(found))
"""

LOAD = """
import json, sys
from pathlib import Path
from engines.loading import load_engine
from engines.options import BuildOptions

loaded = load_engine(Path(sys.argv[1]), BuildOptions(), threads=1, cache=None)
loaded.engine.close()
print(json.dumps({"precision": loaded.precision, "refusal": loaded.refusal}))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process that believes to be on a processor with AVX2 and no more."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def answer(script: str, *arguments: Path) -> dict[str, object]:
    done = run("-c", script, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(300)
def test_the_whole_pipeline_holds_without_vnni() -> None:
    """The tests of `test_pipeline` pass, with 7-bit weights, but for those of what no kernel has a part in."""
    module = Path(__file__).with_name("test_pipeline.py")
    done = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(NO_KERNELS)})", str(module)
    )
    assert done.returncode == 0, done.stdout[-4000:]
    found = re.search(r"(\d+) passed, (\d+) deselected", done.stdout)
    assert found is not None
    assert int(found[1]) > 25
    assert int(found[2]) > len(NO_KERNELS)


@pytest.fixture
def upload(tmp_path: Path) -> tuple[Path, Path]:
    """Bright images for convolutions whose weights are all about as large as the largest of their channel.

    Then most sums of two products pass 16 bits. Trained nets lie between this and no loss at all.
    """
    model = conv_net(channels=32)
    random = np.random.default_rng(5)
    for tensor in model.graph.initializer:
        if tensor.name in {"conv1.weight", "conv2.weight"}:
            value = numpy_helper.to_array(tensor)
            signs = np.sign(random.normal(size=(len(value), 1, 1, 1)))
            even = signs * np.abs(value).mean() * random.normal(1.0, 0.1, value.shape)
            tensor.CopyFrom(numpy_helper.from_array(even.astype(np.float32), tensor.name))
    images = random.uniform(0.3, 1.0, (128, 3, 8, 8)).astype(np.float32)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", allow_pickle=False, image=images)
    return tmp_path / "model.onnx", tmp_path / "samples.npz"


def test_7_bit_weights_keep_the_contract_without_vnni_and_8_bit_ones_do_not(
    upload: tuple[Path, Path], tmp_path: Path
) -> None:
    found = answer(BUILD_WITH_BITS, *upload, tmp_path / "build")
    seven, eight = found["7"], found["8"]
    assert isinstance(seven, dict)
    assert isinstance(eight, dict)
    assert found["bits"] == 7
    assert (seven["verdict"], eight["verdict"]) == ("accepted", "refused")
    assert seven["value"] > 40
    assert eight["value"] < 15
    assert "misses its contract" in eight["reason"]
    assert eight["reason"].endswith("so FP32 serves.")
    assert eight["precision"] == "fp32"


def test_an_artifact_with_8_bit_weights_gives_way_to_fp32_on_a_machine_without_vnni(
    upload: tuple[Path, Path], tmp_path: Path
) -> None:
    if OpenVINORuntime().weight_bits() == 7:
        pytest.skip("this processor has no VNNI, so it makes no artifact with 8-bit weights")
    model, samples = upload
    report = quantize(model, [samples], tmp_path / "build", OPTIONS, threads=1)
    assert report.quantized is not None
    assert report.quantized.holds
    assert (tmp_path / "build" / QUANTIZED).exists()
    loaded = answer(LOAD, tmp_path / "build")
    assert loaded["precision"] == "fp32"
    assert "so FP32 serves" in str(loaded["refusal"])


BUILD = """
import json, sys
from pathlib import Path
from engines.building import quantize
from engines.options import BuildOptions
from engines.workspace import PHASE_RECORDS

model, samples, folder = map(Path, sys.argv[1:])
options = BuildOptions.parse({"batching": {"max_batch_rows": 1}})
report = quantize(model, [samples], folder, options, threads=1)
record = json.loads((folder / PHASE_RECORDS / "quantize.json").read_text())
print(json.dumps(report.summary() | {"value": report.quantized.value, "record": record["summary"]}))
"""


def test_a_model_that_arrives_with_8_bit_weights_gets_7_bit_ones_without_vnni(
    upload: tuple[Path, Path], tmp_path: Path
) -> None:
    if OpenVINORuntime().weight_bits() == 7:
        pytest.skip("this processor has no VNNI, so it makes no artifact with 8-bit weights")
    model, samples = upload
    quantize(model, [samples], tmp_path / "source", OPTIONS, threads=1)
    arriving = tmp_path / "source" / QUANTIZED
    found = answer(BUILD, arriving, samples, tmp_path / "build")
    record = found["record"]
    assert isinstance(record, dict)
    assert record["weights"] == "weights rounded to 7 bits"
    assert record["tune_sqnr_db"]["weights as they arrived"] < 15
    assert (found["verdict"], found["precision"], found["arrived_quantized"]) == ("accepted", "int8", True)
    assert isinstance(found["value"], float)
    assert found["value"] > 30


def test_on_a_machine_without_vnni_the_miss_of_a_model_that_arrived_is_named(
    upload: tuple[Path, Path], tmp_path: Path
) -> None:
    if OpenVINORuntime().weight_bits() == 7:
        pytest.skip("this processor has no VNNI, so it makes no artifact with 8-bit weights")
    model, samples = upload
    quantize(model, [samples], tmp_path / "source", OPTIONS, threads=1)
    quantize(tmp_path / "source" / QUANTIZED, [samples], tmp_path / "build", OPTIONS, threads=1)
    loaded = answer(LOAD, tmp_path / "build")
    assert loaded["precision"] == "fp32"
    assert "its weights use 8 bits, with codes up to 127, and this processor needs 7" in str(
        loaded["refusal"]
    )
    assert "so the graph without its rounding serves" in str(loaded["refusal"])
