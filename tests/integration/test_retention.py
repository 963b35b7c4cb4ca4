"""A real service that keeps things for seconds: what goes, what stays, and kills in the middle of a sweep."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import DIGITS, Octet, running, wait_for

SAMPLES = (DIGITS / "samples.npz").read_bytes()
MODEL = (DIGITS / "digits.onnx").read_bytes()
GONE_S = 40.0


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    folder = tmp_path_factory.mktemp("octet")
    (folder / "plan").touch()
    kept = {
        "OCTET_CRASH_PLAN": str(folder / "plan"),
        "OCTET_SWEEP_EVERY_S": "0.5",
        "OCTET_KEEP_FAILED_BUILDS_S": "2",
        # Nothing protects a file on its way but that it is held.
        "OCTET_KEEP_UNNAMED_S": "0",
    }
    with running(folder / "home", **kept) as service:
        yield service


def is_stored(octet: Octet, content: bytes) -> bool:
    name = hashlib.sha256(content).hexdigest()
    return (octet.home / "store" / "sha256" / name[:2] / name).exists()


def removed(octet: Octet, build_id: str) -> bool:
    return octet.build(build_id)["samples_removed_at"] is not None


def succeeded(octet: Octet, model: str, **options: Any) -> dict[str, Any]:
    build = octet.ended(octet.upload(model, calibration="max", **options).json()["id"])
    assert build["state"] == "succeeded", build["error"]
    return build


def engines(octet: Octet, build_id: str) -> list[Path]:
    """The cached engines that a version was loaded with."""
    uses = json.loads((octet.home / "engine-uses.json").read_text())
    return [octet.home / "engines" / entry for entry, builds in uses.items() if build_id in builds]


@pytest.mark.timeout(240)
def test_samples_go_with_the_end_of_their_build_and_the_same_upload_still_finds_it(octet: Octet) -> None:
    build = succeeded(octet, "deleting", samples="delete")
    assert build["options"]["samples"] == "delete"
    wait_for(lambda: removed(octet, build["id"]), "the samples to be removed", GONE_S, octet)
    assert not is_stored(octet, SAMPLES)
    assert is_stored(octet, MODEL)
    again = octet.upload("deleting", calibration="max", samples="delete")
    assert (again.status_code, again.json()["id"]) == (200, build["id"])
    assert not is_stored(octet, SAMPLES)
    wait_for(lambda: octet.serves("deleting"), "the version to be served", 30.0, octet)
    # Samples that came again with a build that keeps them are that build's.
    kept = succeeded(octet, "keeping")
    assert octet.build(kept["id"])["samples_removed_at"] is None
    assert is_stored(octet, SAMPLES)
    # And a build of the first kind is built from samples that were sent again.
    forced = octet.ended(
        octet.upload("deleting", calibration="max", samples="delete", force=True).json()["id"]
    )
    assert forced["state"] == "succeeded", forced["error"]
    wait_for(lambda: removed(octet, forced["id"]), "the samples to be removed", GONE_S, octet)
    assert is_stored(octet, SAMPLES), "the other build keeps them"


@pytest.mark.timeout(240)
def test_engines_and_files_of_a_deleted_version_go_and_others_stay(octet: Octet) -> None:
    going = succeeded(octet, "going", precision="fp32")
    staying = succeeded(octet, "staying")
    for model in ("going", "staying"):
        wait_for(partial(octet.serves, model), f"{model} to be served", 30.0, octet)
    theirs, others = engines(octet, going["id"]), engines(octet, staying["id"])
    assert theirs
    assert others
    assert not set(theirs) & set(others), "or else they would stay"
    octet.client.delete("/v1/models/going").raise_for_status()
    wait_for(lambda: not any(entry.exists() for entry in theirs), "the engines to go", GONE_S, octet)
    assert all(entry.exists() for entry in others)
    assert octet.infer("staying").status_code == 200


@pytest.mark.timeout(300)
def test_kills_in_the_middle_of_a_sweep_break_nothing(octet: Octet) -> None:
    no_model = b"no model at all"
    failing = octet.post("failing", no_model).json()["id"]
    deleting = octet.upload("swept", samples="delete", calibration="max").json()["id"]
    # After the uploads: a build of the test before may be dropped at any moment, and the service killed for it.
    plan = octet.home.parent / "plan"
    plan.write_text(
        "service worker sweep.builds_dropped\n"
        "process worker sweep.blobs_removed\n"
        "process worker sweep.samples_removed\n"
    )

    def went_on() -> bool:
        if octet.poll() is not None:
            octet.spawn()
        return not plan.read_text()

    wait_for(went_on, "the last kill", 90.0, octet)
    wait_for(octet.is_ready, "octet to be ready again", 60.0, octet)
    assert octet.ended(deleting)["state"] == "succeeded"
    wait_for(lambda: removed(octet, deleting), "the samples to be removed", GONE_S, octet)
    wait_for(
        lambda: octet.client.get(f"/v1/builds/{failing}").status_code == 404,
        "the failed build to go",
        GONE_S,
        octet,
    )
    wait_for(lambda: not is_stored(octet, no_model), "the failed upload to go", GONE_S, octet)
    assert is_stored(octet, MODEL)
    for model in ("swept", "staying"):
        wait_for(partial(octet.serves, model), f"{model} to be served", 30.0, octet)
        assert octet.infer(model).status_code == 200
