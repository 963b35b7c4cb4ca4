"""The whole service on the fakes of TensorRT, pycuda and cuda-bindings: build, serve, batch, swap, unload.

The fakes are strict: what loses memory or breaks an order of calls ends in an error, which here would fail a build or a
request. What NVIDIA's own libraries do is not tested here.
"""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import environment
from tests.integration.running import Octet, running, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    home = tmp_path_factory.mktemp("octet") / "home"
    with running(home, **environment(tensorrt="11.4.0.106")) as service:
        yield service


@pytest.fixture(scope="module")
def digits(octet: Octet) -> dict[str, Any]:
    answer = octet.upload("digits")
    assert answer.status_code == 202, answer.text
    build = octet.ended(answer.json()["id"], 120)
    assert build["state"] == "succeeded", build["error"]
    wait_for(lambda: octet.serves("digits"), "digits to be served", 30, octet)
    return build


def test_start_up_says_that_tensorrt_was_taken_and_what_that_rests_on(octet: Octet) -> None:
    assert "engines run on TensorRT (tensorrt-1" in octet.log
    assert "was not run on hardware by us" in octet.log


def test_a_build_is_proven_on_tensorrt_and_its_report_says_so(octet: Octet, digits: dict[str, Any]) -> None:
    report = octet.client.get("/v1/models/digits/versions/1/report").json()
    assert (report["verdict"], report["serving"], report["emulated"]) == ("accepted", "int8", False)
    assert report["hardware"]["runtime"] == "tensorrt"
    assert "sm89-nvidia_l4" in report["hardware"]["key"]
    assert report["engine_layers"]["by_type"]["int8"] > 0
    assert report["engine_layers"]["by_type"]["fp16"] > 0
    assert report["engine_layers"]["eight_bit"]
    assert any("was not run on hardware by us" in warning for warning in report["warnings"])


def test_requests_are_answered_alone_and_together(octet: Octet, digits: dict[str, Any]) -> None:
    alone = octet.infer("digits")
    assert alone.status_code == 200, alone.text
    expected = alone.json()["outputs"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: octet.infer("digits"), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        assert answer.json()["outputs"][0]["data"] == pytest.approx(expected[0]["data"], abs=1e-5)


def test_a_new_version_takes_over_without_a_failed_request_and_an_old_one_is_unloaded(
    octet: Octet, digits: dict[str, Any]
) -> None:
    build = octet.upload("digits", precision="fp32").json()
    statuses = []
    while octet.build(build["id"])["state"] in ("queued", "running"):
        statuses.append(octet.infer("digits").status_code)
    assert octet.build(build["id"])["state"] == "succeeded", octet.build(build["id"])["error"]
    path = "/v1/models/digits/versions/2"
    wait_for(lambda: octet.client.get(path).json()["state"] == "ready", "version 2", 30, octet)
    statuses += [octet.infer("digits").status_code for _ in range(5)]
    assert set(statuses) == {200}
    assert octet.client.delete("/v1/models/digits/versions/1").status_code == 204
    assert octet.client.post("/v2/repository/models/digits/unload").status_code == 200
    assert octet.infer("digits").status_code == 503
    assert octet.client.post("/v2/repository/models/digits/load").status_code == 200
    assert octet.infer("digits").status_code == 200
    assert "out-of-thread context" not in octet.log
    assert "MisuseError" not in octet.log


def test_openvino_can_be_asked_for_on_a_machine_with_a_gpu(octet: Octet) -> None:
    build = octet.ended(octet.upload("processor", runtime="openvino").json()["id"], 120)
    assert build["state"] == "succeeded", build["error"]
    report = octet.client.get("/v1/models/processor/versions/1/report").json()
    assert report["hardware"]["runtime"] == "openvino"
    assert report["engine_layers"] is None


def test_plans_lie_sealed_under_the_hardware_key(octet: Octet, digits: dict[str, Any]) -> None:
    [key] = list((octet.home / "engines").glob("tensorrt-*"))
    assert {path.suffix for path in key.iterdir()} == {".engine"}
    assert (octet.home / "engines" / "plan.secret").stat().st_mode & 0o077 == 0


def test_a_machine_that_has_changed_compiles_anew_and_fails_no_request(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home, **environment(gpu_name="NVIDIA L4")) as service:
        build = service.ended(service.upload("digits").json()["id"], 120)
        assert build["state"] == "succeeded", build["error"]
        wait_for(lambda: service.serves("digits"), "digits to be served", 30, service)
        before = service.infer("digits").json()["outputs"][0]["data"]
    with running(
        home, **environment(gpu_name="NVIDIA H100", capability="9.0", tensorrt="10.16.1.11")
    ) as service:
        wait_for(lambda: service.serves("digits"), "digits to be served", 60, service)
        assert service.infer("digits").json()["outputs"][0]["data"] == pytest.approx(before, abs=1e-5)
        keys = {path.name for path in (home / "engines").glob("tensorrt-*")}
        assert len(keys) == 2
    with running(home, **environment(no_cuda="no CUDA-capable device is detected")) as service:
        wait_for(lambda: service.serves("digits"), "digits to be served", 60, service)
        assert service.infer("digits").status_code == 200
        assert "TensorRT was not taken: CUDA cannot be started (cuInit failed: no CUDA-capable" in service.log


def test_builds_that_cannot_be_done_end_in_a_sentence(tmp_path: Path) -> None:
    with running(tmp_path / "home", **environment(unknown_operators="Gemm")) as service:
        rejected = service.ended(service.upload("rejected").json()["id"], 120)
        assert rejected["state"] == "failed"
        assert "TensorRT does not take node '" in rejected["error"]["error"]
        assert "(Gemm)" in rejected["error"]["error"]
        wrong = service.upload("wrong", profile={"nothing": {"min": [1], "opt": [1], "max": [1]}})
        refused = service.ended(wrong.json()["id"], 60)
        assert (refused["state"], refused["error"]["code"]) == ("failed", "options.invalid")
        assert "names the input 'nothing'" in refused["error"]["error"]


def test_a_compilation_past_its_deadline_is_stopped_and_said(tmp_path: Path) -> None:
    with running(tmp_path / "home", OCTET_BUILD_TIMEOUT_S="15", **environment(build_s="100")) as service:
        build = service.ended(service.upload("slow", precision="fp32").json()["id"], 120)
        assert (build["state"], build["error"]["code"]) == ("failed", "build.sandbox")
        assert "15 s" in build["error"]["error"]
        assert not service.build_children()
