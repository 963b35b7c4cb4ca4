import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidModelError
from service.builds.sandbox import Limits, Sandbox, Watch
from service.errors import CancelledBuildError, SandboxCrashError, SandboxError, StorageFullError
from service.processes.memory import resident_bytes
from tests.disks import filled

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OCTET_THREADS": "1"}


def open_sandbox(**limits: Any) -> Sandbox:
    return Sandbox(
        Limits(**{"timeout_s": 30.0, "memory_bytes": 512 * MIB, **limits}),
        environment={**ENVIRONMENT, "OCTET_ADMIN_KEY": "a" * 32},
        module="tests.unit.service.sandbox_functions",
    )


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox() as opened:
        yield opened


def test_returns_the_result_and_reports_progress(sandbox: Sandbox) -> None:
    seen: list[float] = []
    result = sandbox.call("add", {"left": 1, "right": 2}, what="adding", watch=Watch(progress=seen.append))
    assert result == 3
    assert seen == [0.5, 1.0]


def test_keeps_its_child_from_call_to_call(sandbox: Sandbox) -> None:
    first = sandbox.call("process", {}, what="looking")
    second = sandbox.call("process", {}, what="looking")
    assert first["pid"] == second["pid"] == sandbox.pid


def test_a_child_that_runs_what_was_uploaded_is_not_told_the_administrators_key(sandbox: Sandbox) -> None:
    assert not sandbox.call("process", {}, what="looking")["has_admin_key"]


def test_child_leads_its_own_process_group_and_gets_the_environment(sandbox: Sandbox) -> None:
    seen = sandbox.call("process", {}, what="looking")
    assert seen["group"] == seen["pid"] != os.getpgid(0)
    assert seen["threads"] == "1"


def test_child_inherits_no_other_files(sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("wb") as secret:
        os.set_inheritable(secret.fileno(), True)  # noqa: FBT003 - it takes no keywords
        handles = sandbox.call("process", {}, what="looking")["handles"]
    # Standard input, output and error, two pipes, the lifeline, and the folder being listed.
    assert len(handles) == 7


def test_what_libraries_print_is_no_answer(sandbox: Sandbox) -> None:
    assert sandbox.call("chatter", {"lines": 5000}, what="chatting") == "from the function"


def test_engine_errors_keep_class_and_sentence(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidModelError, match=r"^the file is no ONNX model\.$"):
        sandbox.call("refuse", {}, what="validate")
    assert sandbox.call("add", {"left": 1, "right": 1}, what="adding") == 2


def test_unforeseen_errors_say_what_happened(sandbox: Sandbox) -> None:
    with pytest.raises(
        SandboxError, match=r"calibrate failed in a way .*KeyError: 'surprise'.*report"
    ) as caught:
        sandbox.call("stumble", {}, what="calibrate")
    assert not isinstance(caught.value, SandboxCrashError)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_names_the_signal_and_the_last_words(sandbox: Sandbox, number: signal.Signals) -> None:
    with pytest.raises(
        SandboxCrashError, match=rf"compile crashed .* with {number.name} .*double free.*onnx\.checker"
    ):
        sandbox.call("die", {"signal": number}, what="compile")


def test_a_kill_from_outside_is_taken_for_lack_of_memory(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxCrashError, match=r"killed by the system, most likely because memory ran out"):
        sandbox.call("die", {"signal": signal.SIGKILL}, what="compile")


def test_works_again_after_a_crash(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxCrashError):
        sandbox.call("die", {"signal": signal.SIGSEGV}, what="compile")
    assert sandbox.call("add", {"left": 2, "right": 2}, what="adding") == 4


def test_a_child_killed_between_calls_is_noticed_and_replaced(sandbox: Sandbox) -> None:
    pid = sandbox.call("process", {}, what="looking")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    with pytest.raises(SandboxCrashError):
        sandbox.call("add", {"left": 1, "right": 1}, what="adding")
    assert sandbox.call("add", {"left": 1, "right": 1}, what="adding") == 2


def test_stops_what_runs_too_long() -> None:
    with open_sandbox(timeout_s=0.5) as sandbox:
        pids: list[int | None] = []

        def note() -> bool:
            pids.append(sandbox.pid)
            return False

        with pytest.raises(SandboxError, match=r"verify was stopped after 0\.5 s.*OCTET_BUILD_TIMEOUT_S"):
            sandbox.call("hang", {}, what="verify", watch=Watch(cancelled=note))
        wait_until_gone(pids[0])


def test_stops_what_takes_too_much_memory() -> None:
    with open_sandbox(memory_bytes=200 * MIB) as sandbox:
        started = time.monotonic()
        with pytest.raises(SandboxError, match=r"calibrate took .* GiB.*0\.20 GiB.*OCTET_BUILD_MEMORY_BYTES"):
            sandbox.call("hoard", {"bytes": 300 * MIB}, what="calibrate")
        assert time.monotonic() - started < 10


def test_files_beyond_the_limit_fail_the_call_alone(tmp_path: Path) -> None:
    with open_sandbox(file_bytes=MIB) as sandbox:
        with pytest.raises(SandboxError, match="File too large"):
            sandbox.call("fill", {"path": str(tmp_path / "large")}, what="prepare")
        assert (tmp_path / "large").stat().st_size == MIB
        assert sandbox.call("add", {"left": 1, "right": 1}, what="adding") == 2


def test_cancelling_kills_the_child_within_two_seconds(sandbox: Sandbox) -> None:
    begun: list[float] = []
    started = time.monotonic()
    with pytest.raises(CancelledBuildError):
        sandbox.call(
            "hang", {}, what="calibrate", watch=Watch(progress=begun.append, cancelled=lambda: bool(begun))
        )
    assert time.monotonic() - started < 2
    assert sandbox.pid is None


def test_an_answer_that_json_lacks_is_an_unforeseen_error(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="not JSON compliant"):
        sandbox.call("nothing", {}, what="verify")


def test_functions_that_are_not_listed_cannot_be_called(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError):
        sandbox.call("eval", {"text": "1"}, what="trying")
    with pytest.raises(SandboxError, match="KeyError: '__import__'"):
        sandbox.call("__import__", {}, what="trying")


@pytest.mark.parametrize("function", ["hang", "wedge", "unsignalled"])
def test_child_ends_with_its_parent(function: str) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(function=function)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    wait_until_gone(int(parent.stdout))


ORPHAN = """
import os, signal, time
from service.builds.sandbox import Watch
from tests.unit.service.test_sandbox import open_sandbox
sandbox = open_sandbox()

def killed(_done):
    print(sandbox.pid, flush=True)
    time.sleep(0.5)  # until it is deep in native code
    os.kill(os.getpid(), signal.SIGKILL)

sandbox.call("{function}", {{}}, what="hanging", watch=Watch(progress=killed))
"""


def wait_until_gone(pid: int | None) -> None:
    deadline = time.monotonic() + 5
    while pid is not None and resident_bytes(pid) > 0:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_full_disk_is_one_sentence_whatever_a_library_makes_of_it(small: Path) -> None:
    arguments = {"path": str(small / "file"), "workspace": str(small)}
    with open_sandbox() as sandbox, filled(small):
        for function in ("fill", "fill_behind_a_library"):
            with pytest.raises(
                StorageFullError, match=rf"no room is left on the disk that holds {small} \(0 b"
            ):
                sandbox.call(function, arguments, what="filling")
