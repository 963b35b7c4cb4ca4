"""`octet quantize` and `octet inspect`, as they are typed."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from engines.reports.report import Report, Verdict
from service.commands.quantize import Flags, Order, run
from tests.integration.running import DIGITS, ROOT
from tests.unit.engines.onnx_graphs import conv_net, image_rows, mlp, vector_rows

HEAVY = ("openvino", "onnxruntime", "onnx", "numpy", "numba")


def temporary(folder: Path) -> Path:
    """Where a command run in `folder` keeps what it does not leave."""
    if folder == ROOT:
        return Path(tempfile.gettempdir())
    path = folder / "temporary"
    path.mkdir(exist_ok=True)
    return path


def octet(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OCTET_HOME": str(folder / "no-home"),
            "NUMBA_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"octet-tests-numba-{os.getuid()}"),
            "TMPDIR": str(temporary(folder)),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A small model and samples of it."""
    model, samples = tmp_path / "model.onnx", tmp_path / "samples.npz"
    model.write_bytes(conv_net().SerializeToString())
    np.savez(samples, allow_pickle=False, image=image_rows(64))
    return model, samples


def test_quantize_writes_the_model_and_the_page(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    output, page = tmp_path / "elsewhere" / "digits.int8.onnx", tmp_path / "report.html"
    done = octet(
        "quantize", DIGITS / "digits.onnx", "--samples", DIGITS / "samples.npz", "-o", output, "--report", page,
        "--effort", "fast", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accepted: the INT8 engine answers like FP32 (SQNR ")
    for words in ("top-1 agreement", "latency, batch 32", "file ", f"wrote {output}", f"wrote {page}"):
        assert words in done.stdout
    for phase in ("validate", "prepare", "calibrate", "quantize", "compile", "verify"):
        assert phase in done.stderr
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(output).graph.node}
    assert "<h2>Error by layer</h2>" in page.read_text()
    # No database, no draft, no folder of the build is left.
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "report.html", "temporary"}
    assert not list(temporary(tmp_path).glob("octet-*"))
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_model_that_misses_its_contract_is_not_written(tmp_path: Path, small: tuple[Path, Path]) -> None:
    model, samples = small
    output, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = octet(
        "quantize", model, "-s", samples, "-o", output, "--report", report, "--contract-min", 150, "--threads", 1,
        "--effort", "fast", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("refused: ")
    assert f"{output} was not written, because the contract is not kept." in done.stdout
    assert not output.exists()
    found = Report.load(report)
    assert (found.verdict, found.contract.min, found.hardware.threads) == (Verdict.REFUSED, 150, 1)


@pytest.mark.parametrize(("on_miss", "status"), [("publish", 0), ("fail", 1)])
def test_what_misses_its_contract_is_treated_as_on_miss_asks(
    tmp_path: Path, small: tuple[Path, Path], on_miss: str, status: int
) -> None:
    model, samples = small
    order = Order(
        model=model,
        samples=(samples,),
        output=tmp_path / "out.onnx",
        report=None,
        options=json.dumps({"on_miss": on_miss, "effort": "fast"}),
        flags=Flags(contract_min=150.0),
        threads=1,
    )
    out, errors = (Console(file=io.StringIO(), width=1000) for _ in range(2))
    assert run(order, out=out, progress=errors) == status
    assert order.output.exists() == (on_miss == "publish")
    said = (out if on_miss == "publish" else errors).file.getvalue()  # type: ignore[attr-defined] # a StringIO
    expected = {
        "publish": "below contract: the 8-bit engine misses its contract",
        "fail": "on_miss asks to fail",
    }
    assert expected[on_miss] in said


def test_bad_input_is_one_sentence_and_no_traceback(tmp_path: Path, small: tuple[Path, Path]) -> None:
    model, _ = small
    samples = tmp_path / "other.npz"
    np.savez(samples, allow_pickle=False, vector=vector_rows(8))
    done = octet("quantize", model, "--samples", samples, "-o", tmp_path / "out.onnx")
    assert done.returncode == 2
    assert "octet: the sample file" in done.stderr
    assert "has no array for the model's input 'image'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_weights_and_labels_are_taken_from_files(tmp_path: Path) -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with np.load(DIGITS / "digits.npz") as digits:
        np.savez(
            tmp_path / "samples.npz", image=digits["images"][:160].astype(np.float32), allow_pickle=False
        )
        np.save(tmp_path / "labels.npy", digits["labels"][:160].astype(np.int64))
    done = octet(
        "quantize", "model.onnx", "-w", "w.bin", "-s", "samples.npz", "--labels", "labels.npy", "-o", "out.onnx",
        "--effort", "fast", "--on-miss", "fail", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "top-1 on the labels" in done.stdout
    assert done.stderr.count("\n") == 6, "a line for each phase"
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    shown = octet("inspect", "model.onnx", "--weights", "w.bin", folder=tmp_path)
    assert "6 of 7 layers" in shown.stdout
    refused = octet("inspect", "model.onnx", folder=tmp_path)
    assert (refused.returncode, "--weights of the command" in refused.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_build_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    kept = temporary(tmp_path)
    command = ["quantize", DIGITS / "digits.onnx", "-s", DIGITS / "samples.npz", "-o", tmp_path / "out.onnx"]
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", *map(str, command), "--effort", "thorough"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(kept)},
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(kept.glob("octet-*/build/validated.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert not list(kept.glob("octet-*"))
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = octet(
        "quantize", tmp_path / "none.onnx", "--samples", tmp_path / "none.npz", "-o", tmp_path / "out"
    )
    assert done.returncode == 2
    # In a frame, whose lines end where they end.
    assert "does not exist" in " ".join(done.stderr.replace("│", " ").split())


def test_inspect_shows_what_would_be_quantized(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    proto = mlp(hidden=32, classes=20)
    proto.graph.node[0].name = "[red]fc1[/red]\x1b[31m"
    model.write_bytes(proto.SerializeToString())
    done = octet("inspect", model)
    assert done.returncode == 0, done.stderr
    assert "vector float32 [?, 12]" in done.stdout
    assert "1 of 2 layers" in done.stdout
    assert "its weights are too small (32 x 12) to gain from 8 bits" in done.stdout
    assert "'[red]fc1[/red]\\x1b[31m'" in done.stdout
    shown = json.loads(octet("inspect", model, "--json").stdout)
    assert [layer["operator"] for layer in shown["quantized"]] == ["Gemm"]


def test_inspect_refuses_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"{}")
    done = octet("inspect", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("octet: the model is not an ONNX file: it looks like JSON")


@pytest.mark.parametrize("command", [["version"], ["--help"], ["quantize", "--help"]])
def test_commands_that_compute_nothing_load_no_library_that_does(command: list[str]) -> None:
    script = (
        "import sys\nfrom service.cli import app\n"
        f"try:\n    app({command!r})\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded []\n")
