"""Uploads, builds and models over HTTP, against a real service."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from service.processes.supervisor import READY
from tests.integration.running import DIGITS, Octet, running, wait_for

MAX_UPLOAD_BYTES = 2_000_000


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    with running(
        tmp_path_factory.mktemp("octet") / "home", OCTET_MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES)
    ) as service:
        yield service


@pytest.fixture(scope="module")
def digits(octet: Octet) -> dict[str, Any]:
    """A build that has succeeded, of standard effort."""
    answer = octet.upload("digits", effort="standard")
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/v1/builds/{answer.json()['id']}"
    build = octet.ended(answer.json()["id"])
    assert build["state"] == "succeeded", build["error"]
    return build


def test_a_build_goes_through_its_phases_to_a_version(octet: Octet, digits: dict[str, Any]) -> None:
    assert list(digits["timings_s"]) == ["validate", "prepare", "calibrate", "quantize", "compile", "verify"]
    assert digits["progress"] == 1.0
    assert digits["result"]["model"] == "digits"
    assert digits["result"]["version"] == 1
    assert digits["error"] is None
    assert digits["finished_at"] >= digits["started_at"] >= digits["created_at"]


def test_the_version_is_served(octet: Octet, digits: dict[str, Any]) -> None:
    wait_for(lambda: octet.serves("digits"), "digits to be served", 60, octet)
    answer = octet.infer("digits")
    assert answer.status_code == 200, answer.text
    shown = octet.client.get("/v1/models/digits").json()
    assert shown["default"] == 1
    [version] = shown["versions"]
    assert (version["state"], version["precision"], version["default"]) == ("ready", "int8", True)
    [listed] = octet.client.get("/v1/models").json()["models"]
    # What it does now moves on from one request to the next.
    assert listed["versions"][0].pop("live").keys() == version.pop("live").keys()
    assert listed == shown


def test_report_and_artifact_can_be_fetched(octet: Octet, digits: dict[str, Any]) -> None:
    version = octet.client.get("/v1/models/digits/versions/1").json()
    assert version["build"] == digits["id"]
    assert version["bytes"] == sum(version["files_bytes"].values()) > 0
    assert not [name for name in version["files_bytes"] if "samples" in name]
    report = octet.client.get("/v1/models/digits/versions/1/report")
    assert report.headers["content-type"] == "application/json"
    assert isinstance(report.json(), dict)
    artifact = octet.client.get("/v1/models/digits/versions/1/artifact")
    assert 'filename="digits-1.onnx"' in artifact.headers["content-disposition"]
    assert b"QuantizeLinear" in artifact.content


def test_weights_in_a_part_of_their_own_make_the_same_model(octet: Octet, tmp_path: Path) -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    light, weights = (tmp_path / "model.onnx").read_bytes(), (tmp_path / "w.bin").read_bytes()
    build = octet.ended(octet.post("split", light, weights={"w.bin": weights}).json()["id"])
    assert build["state"] == "succeeded", build["error"]
    wait_for(lambda: octet.serves("split"), "split to be served", 60, octet)
    inside = octet.client.get("/v1/models/split/versions/1/artifact/weights")
    assert inside.status_code == 404
    assert "they are inside it" in inside.json()["error"]
    missing = octet.ended(octet.post("cut", light, weights={"other.bin": weights}).json()["id"])
    assert missing["error"]["code"] == "model.invalid"
    assert (
        "the file 'w.bin', which was not uploaded (weights parts: 'other.bin')" in missing["error"]["error"]
    )


def test_an_equal_upload_returns_the_earlier_build(octet: Octet, digits: dict[str, Any]) -> None:
    again = octet.upload("digits", effort="standard")
    assert again.status_code == 200
    assert again.json()["id"] == digits["id"]
    assert octet.upload("digits", calibration="max").status_code == 202


def test_force_builds_again_and_the_default_can_be_rolled_back(octet: Octet, digits: dict[str, Any]) -> None:
    answer = octet.upload("rolled", precision="fp32")
    first = octet.ended(answer.json()["id"])
    forced = octet.upload("rolled", precision="fp32", force=True)
    assert forced.status_code == 202
    second = octet.ended(forced.json()["id"])
    assert (first["result"]["version"], second["result"]["version"]) == (1, 2)
    assert octet.client.get("/v1/models/rolled").json()["default"] == 2
    answer = octet.client.delete("/v1/models/rolled/versions/2")
    assert (answer.status_code, answer.json()["code"]) == (409, "request.conflict")
    assert octet.client.put("/v1/models/rolled/default", json={"version": 1}).json()["default"] is True
    assert octet.client.get("/v1/models/rolled").json()["default"] == 1
    assert octet.client.delete("/v1/models/rolled/versions/2").status_code == 204
    assert octet.client.delete("/v1/models/rolled").status_code == 204
    assert octet.client.get("/v1/models/rolled").status_code == 404


def test_the_fp32_artifact_is_the_fp32_model(octet: Octet) -> None:
    octet.ended(octet.upload("plain", precision="fp32").json()["id"])
    artifact = octet.client.get("/v1/models/plain/versions/1/artifact")
    assert artifact.status_code == 200, artifact.text
    assert b"QuantizeLinear" not in artifact.content


def test_fp8_is_built_and_served_and_said_to_be_emulated(octet: Octet) -> None:
    answer = octet.upload("floats", precision="fp8")
    assert answer.status_code == 202, answer.text
    build = octet.ended(answer.json()["id"])
    assert build["state"] == "succeeded", build["error"]
    wait_for(lambda: octet.serves("floats"), "floats to be served", 60, octet)
    assert octet.infer("floats").status_code == 200
    [version] = octet.client.get("/v1/models/floats").json()["versions"]
    assert (version["state"], version["precision"]) == ("ready", "fp8")
    report = octet.client.get("/v1/models/floats/versions/1/report").json()
    assert (report["serving"], report["emulated"]) == ("fp8", True)
    metrics = octet.client.get("/metrics").text
    assert 'octet_version_sqnr_db{model="floats"' in metrics
    assert 'octet_version_speedup{model="floats"' not in metrics


def test_e5m2_is_refused_in_a_sentence(octet: Octet) -> None:
    answer = octet.upload("floats", precision="fp8_e5m2")
    assert (answer.status_code, answer.json()["code"]) == (422, "options.invalid")
    assert answer.json()["error"].endswith('use "fp8", which is E4M3.')


def test_events_tell_of_the_build_until_its_end(octet: Octet) -> None:
    build = octet.upload("followed", calibration="max").json()
    with octet.client.stream("GET", f"/v1/builds/{build['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    seen = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert seen[-1]["state"] == "succeeded"
    assert seen[-1] == octet.build(build["id"])
    progress = [event["progress"] for event in seen]
    assert progress == sorted(progress)
    assert len(seen) > 2


def test_cancelling_stops_native_work_within_two_seconds(octet: Octet) -> None:
    build = octet.upload("stopped", force=True).json()
    wait_for(lambda: octet.build(build["id"])["phase"] is not None, "the build to begin", 20, octet)
    [child] = octet.build_children()
    started = time.monotonic()
    cancelled = octet.client.delete(f"/v1/builds/{build['id']}").json()
    assert (cancelled["state"], cancelled["error"]["code"]) == ("cancelled", "build.cancelled")
    wait_for(lambda: child not in octet.processes("service.builds.child"), "the child to end", 5, octet)
    assert time.monotonic() - started < 2
    assert octet.client.get("/v1/models/stopped").status_code == 404
    assert octet.client.delete(f"/v1/builds/{build['id']}").status_code == 200


def test_a_file_that_is_no_onnx_fails_its_build_alone(octet: Octet, digits: dict[str, Any]) -> None:
    wait_for(lambda: octet.serves("digits"), "digits to be served", 60, octet)
    answer = octet.post("broken", b"this is no model")
    build = octet.ended(answer.json()["id"])
    assert build["state"] == "failed"
    assert build["error"]["code"] == "model.invalid"
    assert build["error"]["error"].endswith(".")
    assert octet.infer("digits").status_code == 200


@pytest.mark.parametrize(
    ("path", "files", "status", "code", "sentence"),
    [
        (
            "Digits",
            {"model": b"m", "samples": b"PK\x03\x04zip"},
            400,
            "request.invalid",
            "cannot be a model's name",
        ),
        ("d", {"samples": b"PK\x03\x04zip"}, 400, "request.invalid", "no part 'model'"),
        ("d", {"model": b"m"}, 400, "request.invalid", "no part 'samples'"),
        ("d", {"model": b"", "samples": b"PK\x03\x04zip"}, 400, "request.invalid", "is empty"),
        (
            "d",
            {"model": b"m", "samples": b"1,2,3,4"},
            422,
            "samples.invalid",
            "neither .npz, .npy nor .safetensors",
        ),
        (
            "d",
            {"model": b"m", "samples": b"PK\x03\x04zip", "rows": b"1"},
            400,
            "request.invalid",
            "unknown part 'rows'",
        ),
        (
            "d",
            {"model": b"m", "samples": b"PK\x03\x04zip", "options": b"{"},
            422,
            "options.invalid",
            "not valid JSON",
        ),
        (
            "d",
            {"model": b"m", "samples": b"PK\x03\x04zip", "options": b'{"x": 1}'},
            422,
            "options.invalid",
            "unknown option 'x'",
        ),
        ("d", {"model": b"m" * 3_000_000}, 413, "request.too_large", f"the limit is {MAX_UPLOAD_BYTES}"),
    ],
)
def test_a_bad_upload_is_one_sentence(
    octet: Octet, path: str, files: dict[str, bytes], status: int, code: str, sentence: str
) -> None:
    answer = octet.client.post(
        f"/v1/models/{path}/builds", files={name: (name, data) for name, data in files.items()}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert sentence in answer.json()["error"]


def test_an_endless_body_is_cut_at_the_limit(octet: Octet) -> None:
    def body() -> Iterator[bytes]:
        yield b'--cut\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'
        for _ in range(40):
            yield b"m" * 100_000

    answer = octet.client.post(
        "/v1/models/d/builds", content=body(), headers={"Content-Type": "multipart/form-data; boundary=cut"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "request.too_large")
    assert not list((octet.home / "store" / "incoming").iterdir())


def test_an_upload_that_breaks_off_leaves_nothing(octet: Octet) -> None:
    def body() -> Iterator[bytes]:
        yield b'--cut\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'
        yield b"m" * 1_500_000
        raise InterruptedError

    with httpx.Client(base_url=octet.client.base_url) as client, pytest.raises(InterruptedError):
        client.post(
            "/v1/models/d/builds",
            content=body(),
            headers={"Content-Type": "multipart/form-data; boundary=cut"},
        )
    incoming = octet.home / "store" / "incoming"
    wait_for(lambda: not list(incoming.iterdir()), "the half upload to vanish", 5, octet)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("GET", "/v1/builds/none", None, 404, "there is no build 'none'"),
        ("DELETE", "/v1/builds/none", None, 404, "there is no build 'none'"),
        ("GET", "/v1/builds/none/events", None, 404, "there is no build 'none'"),
        ("GET", "/v1/builds?limit=0", None, 400, "limit cannot be 0"),
        ("GET", "/v1/models/none", None, 404, "there is no model 'none'"),
        ("GET", "/v1/models/none/versions/1", None, 404, "there is no model 'none'"),
        ("GET", "/v1/models/none/versions/one", None, 400, "'one' is no version"),
        ("GET", "/v1/models/none/versions/1/report", None, 404, "there is no model 'none'"),
        ("DELETE", "/v1/models/none", None, 404, "there is no model 'none'"),
        ("PUT", "/v1/models/none/default", {"version": 1}, 404, "there is no model 'none'"),
        ("PUT", "/v1/models/none/default", {"version": "1"}, 400, "send the number of a version"),
        ("PUT", "/v1/models/none/default", {"version": True}, 400, "send the number of a version"),
        ("PUT", "/v1/models/none/default", [], 400, "send the number of a version"),
    ],
)
def test_what_is_not_there_is_named(
    octet: Octet, method: str, path: str, body: Any, status: int, sentence: str
) -> None:
    answer = octet.client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def test_only_the_port_asked_for_is_open(octet: Octet) -> None:
    own = set()
    for pid in octet.processes():
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            target = str(handle.readlink()) if handle.is_symlink() else ""
            if target.startswith("socket:["):
                own.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                listening.append((fields[1].split(":")[0], int(fields[1].split(":")[1], 16)))
    assert listening == [("0100007F", octet.port)]


def test_a_worker_shows_that_its_main_loop_goes_round(octet: Octet) -> None:
    mark = octet.home / READY
    [worker] = octet.processes("service.worker")
    wait_for(mark.exists, "the worker to be ready", 60, octet)
    os.kill(worker, signal.SIGSTOP)
    try:
        os.utime(mark, (0, 0))
        time.sleep(2.5)
        assert mark.stat().st_mtime == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_for(lambda: mark.stat().st_mtime > 0, "the mark to be touched", 5, octet)


def test_a_second_service_in_the_same_folder_says_who_holds_it(octet: Octet) -> None:
    second = Octet(octet.home)
    second.spawn()
    assert second.wait() == 1
    second.client.close()
    [supervisor] = octet.processes("service.cli")
    assert f"is in use by another octet, process {supervisor}; stop that one first" in octet.log


def test_a_port_in_use_is_one_sentence(octet: Octet, tmp_path: Path) -> None:
    second = Octet(tmp_path / "home")
    second.port = octet.port
    second.spawn()
    assert second.wait() == 1
    second.client.close()
    assert f"octet cannot listen on 127.0.0.1 port {octet.port}" in second.log
    assert "Traceback" not in second.log


def test_a_wide_bind_without_keys_is_refused(tmp_path: Path) -> None:
    wide = Octet(tmp_path / "home", environment={"OCTET_HOST": "0.0.0.0"})
    wide.spawn()
    assert wide.wait() == 1
    wide.client.close()
    assert "would listen on 0.0.0.0 and there are no keys" in wide.log


def test_a_stop_in_the_middle_of_a_build_is_in_order_and_the_build_goes_on(tmp_path: Path) -> None:
    with running(tmp_path / "home") as service:
        build = service.upload("later").json()
        wait_for(lambda: service.build(build["id"])["phase"] is not None, "the build to begin", 20, service)
        with service.client.stream("GET", f"/v1/builds/{build['id']}/events") as events:
            assert next(events.iter_lines())
            stopping = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - stopping < 5, "an open stream of events must not keep the server"
        assert not service.processes()
        assert "Traceback" not in service.log
        service.start()
        assert service.ended(build["id"])["state"] == "succeeded"
    assert "octet is ready at" in service.log


def test_a_build_that_fails_in_an_unforeseen_way_ends_and_the_next_one_runs(tmp_path: Path) -> None:
    with running(tmp_path / "home") as service:
        work = tmp_path / "home" / "work"
        work.touch()
        build = service.ended(service.upload("unlucky").json()["id"])
        assert (build["state"], build["error"]["code"]) == ("failed", "build.internal")
        assert "the build could not be carried out (error: " in build["error"]["error"]
        work.unlink()
        assert service.ended(service.upload("unlucky").json()["id"])["state"] == "succeeded"
