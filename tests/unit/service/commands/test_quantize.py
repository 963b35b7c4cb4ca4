"""Options of `octet quantize`, and what it refuses before it builds; builds are in the integration tests."""

import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array
from rich.console import Console

from engines.errors import InvalidOptionsError
from engines.model import external_weights
from engines.model.model import from_proto, save_model
from engines.options import BuildOptions, CalibrationMethod, Contract, Effort, Metric, OnMiss, Precision
from service.commands.quantize import BAD_INPUT, Flags, Order, build_options, run, write_model
from tests.unit.engines.onnx_graphs import mlp


def test_without_flags_the_options_are_those_of_the_text() -> None:
    assert build_options("{}", Flags()) == BuildOptions()
    assert build_options('{"promote": false}', Flags()) == BuildOptions(promote=False)


def test_flags_go_before_the_text_and_leave_the_rest_of_it() -> None:
    text = '{"precision": "int8", "calibration": "max", "contract": {"metric": "cosine", "min": 0.5}}'
    flags = Flags(precision=Precision.FP32, contract_min=0.9)
    assert build_options(text, flags) == BuildOptions(
        precision=Precision.FP32,
        calibration=CalibrationMethod.MAX,
        contract=Contract(metric=Metric.COSINE, min=0.9),
    )
    assert build_options("{}", Flags(contract_min=0.0)).contract.min == 0.0
    assert build_options('{"effort": "thorough"}', Flags(effort=Effort.FAST)).effort is Effort.FAST
    assert build_options('{"on_miss": "mix"}', Flags(on_miss=OnMiss.FAIL)).on_miss is OnMiss.FAIL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "cannot be"),
        ('{"precison": "int8"}', "unknown option 'precison'"),
        ('{"contract": 5}', "option 'contract' cannot be 5"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidOptionsError, match=words):
        build_options(text, Flags(contract_min=1.0))


def refused(tmp_path: Path, **changes: object) -> str:
    model, samples = tmp_path / "model.onnx", tmp_path / "samples.npz"
    model.write_bytes(b"not read")
    samples.write_bytes(b"not read")
    fields = {
        "model": model,
        "samples": (samples,),
        "output": tmp_path / "out.onnx",
        "report": None,
        "options": "{}",
        "flags": Flags(),
        "threads": 1,
    }
    said = io.StringIO()
    order = Order(**fields | changes)  # type: ignore[arg-type] # a test's fields are of any type
    status = run(order, out=Console(file=io.StringIO()), progress=Console(file=said, width=1000))
    assert status == BAD_INPUT
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "samples.npz"}
    return said.getvalue()


def test_bad_orders_are_refused_in_one_line_before_anything_is_built(tmp_path: Path) -> None:
    said = refused(tmp_path, report=tmp_path / "report.txt")
    assert said == "octet: the report 'report.txt' has no known ending; end it in .html or .json.\n"
    said = refused(
        tmp_path, report=tmp_path / "samples.npz" / ".." / "out.html", output=tmp_path / "model.onnx"
    )
    assert "model.onnx is an input and would be overwritten" in said
    assert said.count("\n") == 1
    assert "unknown option" in refused(tmp_path, options='{"nonsense": 1}')
    for folder in (Path(), Path("/"), tmp_path):
        assert f"{folder} is a folder; name a file in it" in refused(tmp_path, output=folder)


def test_no_file_that_is_read_is_written_over(tmp_path: Path) -> None:
    for name in ("weights", "labels"):
        given = tmp_path / "samples.npz"
        said = refused(tmp_path, output=given, samples=(), **{name: (given,) if name == "weights" else given})
        assert "samples.npz is an input and would be overwritten" in said


def test_the_weights_beside_the_output_are_no_input_either(tmp_path: Path) -> None:
    said = refused(tmp_path, output=tmp_path / "model", weights=(tmp_path / "model.data",), samples=())
    assert "model.data is an input and would be overwritten" in said


def test_a_model_is_written_with_its_weights_under_names_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_weights, "MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(external_weights, "_SMALLEST_BYTES", 64)
    model = from_proto(mlp(hidden=64, classes=16))
    (tmp_path / "build").mkdir()
    save_model(model, tmp_path / "build" / "quantized.onnx")
    write_model(tmp_path / "build" / "quantized.onnx", tmp_path / "mine.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"build", "mine.onnx", "mine.onnx.data"}
    shutil.rmtree(tmp_path / "build")
    written = {tensor.name: tensor for tensor in onnx.load(tmp_path / "mine.onnx").graph.initializer}
    for tensor in model.proto.graph.initializer:
        np.testing.assert_array_equal(to_array(written[tensor.name]), to_array(tensor))
