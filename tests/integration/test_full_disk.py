"""A disk that is really full, under a real service: what is refused, what goes on, and what comes after."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.disks import filled, small_disk
from tests.integration.running import DIGITS, ROOT, Octet, free_port, wait_for


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disks") / "disk", size_kib=64 << 10) as folder:
        yield folder


@pytest.fixture(scope="module")
def queue_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disks") / "queue", size_kib=8 << 10) as folder:
        yield folder


@pytest.fixture(scope="module")
def octet(disk: Path, queue_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    """A service with its home on the one small disk and its queue on the other; the model `digits` serves."""
    (disk / "home").mkdir()
    (disk / "home" / "queue.db").symlink_to(queue_disk / "queue.db")
    log = tmp_path_factory.mktemp("log") / "home.log"
    log.touch()
    (disk / "home.log").symlink_to(log)
    octet = Octet(disk / "home")
    try:
        octet.start()
        build = octet.ended(octet.upload(calibration="max").json()["id"])
        assert build["state"] == "succeeded", build["error"]
        wait_for(lambda: octet.serves("digits"), "the version to be served", 30, octet)
        yield octet
    finally:
        octet.client.close()
        octet.stop()
        wait_for(lambda: not octet.processes(), "the service's processes to end", 10.0, octet)


def upload() -> httpx.Request:
    """One whose samples are those of the digits."""
    parts = [
        ("model", ("model.onnx", (DIGITS / "digits.onnx").read_bytes())),
        ("samples", ("samples.npz", (DIGITS / "samples.npz").read_bytes())),
    ]
    return httpx.Request("POST", "http://x", files=parts)


def check_refused(answer: httpx.Response, octet: Octet) -> None:
    assert (answer.status_code, answer.json()["code"]) == (507, "storage.full"), answer.text
    assert "free some space" in answer.json()["error"]
    assert not list((octet.home / "store" / "incoming").glob("*"))
    assert octet.infer("digits").status_code == 200
    assert octet.client.get("/v2/health/live").status_code == 200
    assert octet.is_ready()


@pytest.mark.timeout(240)
def test_uploads_are_refused_and_everything_else_goes_on(octet: Octet, disk: Path) -> None:
    with filled(disk):
        announced = octet.upload("second")
        check_refused(announced, octet)
        assert "bytes are needed and the disk that holds" in announced.json()["error"]
        made = upload()
        headers = {"Content-Type": made.headers["content-type"]}
        streamed = octet.client.post("/v1/models/second/builds", content=iter([made.read()]), headers=headers)
        check_refused(streamed, octet)
        assert "no room is left on the disk" in streamed.json()["error"]
        # What changes no more than a row has no room either, and says so.
        assert octet.client.delete("/v1/models/digits").status_code == 507
        assert octet.infer("digits").status_code == 200
    assert octet.upload("second", calibration="max").status_code == 202


@pytest.mark.timeout(240)
def test_a_build_waits_for_room_and_goes_on(octet: Octet, disk: Path) -> None:
    build_id = octet.upload("waiting", force=True).json()["id"]
    wait_for(lambda: octet.build(build_id)["phase"] == "calibrate", "the third phase", 60, octet)
    with filled(disk):
        wait_for(lambda: f"build {build_id}: no room is left" in octet.log, "the build to wait", 30, octet)
        assert octet.build(build_id)["state"] == "running"
    assert octet.ended(build_id)["state"] == "succeeded"


@pytest.mark.timeout(240)
def test_a_queue_without_room_for_its_notes_loses_no_build(octet: Octet, queue_disk: Path) -> None:
    build_id = octet.upload("noted", force=True).json()["id"]
    wait_for(lambda: octet.build(build_id)["phase"] == "calibrate", "the third phase", 60, octet)
    with filled(queue_disk):
        wait_for(lambda: "the queue cannot note a step" in octet.log, "the queue to be full", 30, octet)
        assert octet.infer("digits").status_code == 200
    build = octet.ended(build_id)
    assert build["state"] == "succeeded", build["error"]


@pytest.mark.timeout(300)
def test_a_service_that_starts_on_a_full_disk_says_why_and_begins_once_there_is_room(
    octet: Octet, disk: Path
) -> None:
    assert octet.stop() == 0
    said = len(octet.log)
    with filled(disk):
        octet.spawn()
        wait_for(
            lambda: all(octet.log[said:].count(text) for text in ('"role":"server"', "bytes are needed")),
            "server and worker to say why they wait",
            30,
            octet,
        )
        # Longer than it takes the supervisor to give up on what ends again and again.
        time.sleep(5)
        assert octet.poll() is None
        assert " ended with " not in octet.log[said:]
    wait_for(octet.is_ready, "octet to be ready", 60, octet)
    wait_for(lambda: octet.serves("digits"), "the version to be served", 30, octet)
    assert octet.infer("digits").status_code == 200


@pytest.mark.timeout(120)
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Path("/dev/full").open("wb") as full:
        service = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            cwd=ROOT,
            env={**os.environ, "OCTET_HOME": str(tmp_path / "home"), "OCTET_PORT": str(port)},
            stdout=full,
            stderr=full,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 100
        while not is_live(port):
            assert service.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # The supervisor has had something to say by then as well.
        time.sleep(1)
        assert is_live(port)
        assert service.poll() is None
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(30)


def is_live(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() == 0, reason="root has run the tests above by itself")
def test_the_same_in_a_namespace_of_its_own() -> None:
    """Whoever is not root may mount a disk in a namespace, where the system allows for that."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("this system gives its users no namespaces")
    tests = [str(ROOT / "tests" / "unit" / "service"), "-k", "full_disk", __file__]
    done = subprocess.run(
        [unshare, "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
