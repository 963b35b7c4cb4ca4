"""The commands of the README, run as they are printed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.running import DIGITS, ROOT, Octet, running, wait_for

README = (ROOT / "README.md").read_text(encoding="utf-8")
PRINTED_ADDRESS = "http://127.0.0.1:8000"
CURL = re.compile(r"^curl (?:.*\\\n)*.*", re.MULTILINE)
COMMANDS = CURL.findall("\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)))
UPLOAD, LIST, INFER, UPLOAD_WITH_OPTIONS, WITH_A_KEY = range(5)


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl to type the README's commands with")
    with running(tmp_path_factory.mktemp("readme") / "home") as octet:
        yield octet


def typed(octet: Octet, number: int) -> dict[str, object]:
    command = COMMANDS[number].replace(PRINTED_ADDRESS, f"http://127.0.0.1:{octet.port}")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=True, timeout=60)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_every_command_is_known_here() -> None:
    assert len(COMMANDS) == 5
    assert all(PRINTED_ADDRESS in command for command in COMMANDS)


def test_curl_lines_upload_list_and_infer(octet: Octet) -> None:
    build = typed(octet, UPLOAD)
    assert build["model"] == "digits"
    octet.ended(str(build["id"]))
    builds = typed(octet, LIST)["builds"]
    assert isinstance(builds, list)
    assert [listed["state"] for listed in builds] == ["succeeded"]
    wait_for(lambda: octet.serves("digits"), "digits to be served", 30.0, octet)
    outputs = typed(octet, INFER)["outputs"]
    assert isinstance(outputs, list)
    assert outputs[0]["shape"] == [1, 10]


def test_curl_line_with_options_builds_what_it_asks_for(octet: Octet) -> None:
    build = octet.ended(str(typed(octet, UPLOAD_WITH_OPTIONS)["id"]))
    assert build["state"] == "succeeded"
    assert build["options"]["contract"] == {"metric": "sqnr_db", "min": 30.0}


def test_python_lines_quantize_without_a_server(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shutil.copy(DIGITS / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(DIGITS / "samples.npz", tmp_path / "samples.npz")
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, check=True, text=True, timeout=100
    )
    assert done.stdout == "accepted int8\n"
    assert (tmp_path / "out" / "quantized.onnx").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z]+)", README))))
def test_every_make_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
