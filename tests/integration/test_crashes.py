"""`kill -9` before and after every durable write, of one process and of the whole service: nothing is lost.

The points are not listed here: a first build passes them all and notes them (`service.builds.crashpoints`), so that a
new point is tested from the day it is written. Two more builds then die at one after the other: one with the
process alone where the other dies with the whole service, and the other way round. Of the points that every
phase passes, each phase gets one, in turn, which keeps this within minutes.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import httpx
import pytest

from tests.integration.running import ROOT, Octet, running, wait_for

UPLOAD_S = 60.0
BUILD_S = 240.0


@pytest.fixture(scope="module")
def octet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octet]:
    folder = tmp_path_factory.mktemp("octet")
    plan = folder / "plan"
    plan.touch()
    with running(folder / "home", OCTET_CRASH_PLAN=str(plan)) as service:
        yield service


@pytest.fixture(scope="module")
def points(octet: Octet) -> list[str]:
    """The points that an upload and its build pass, in order; a version of it serves from here on."""
    build = octet.ended(octet.upload("steady", calibration="max").json()["id"])
    assert build["state"] == "succeeded", build["error"]
    wait_for(lambda: octet.serves("steady"), "the first version to be served", 30, octet)
    return passed(octet)


def test_every_point_in_the_code_is_passed(points: list[str]) -> None:
    # What a store in S3 passes, and what sweeps do (test_retention), is not on the way of a build.
    others = ("object_store", "retention", "shared")
    source = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py") if path.stem not in others)
    written = set(re.findall(r'reached\("([a-z._]+)"', source))
    assert len(written) >= 10
    assert written == {point.split(" ")[1] for point in points}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("victims", "shift"), [(("process", "service"), 0), (("service", "process"), 1)])
def test_a_build_survives_kills_at_every_point(
    octet: Octet, points: list[str], victims: tuple[str, str], shift: int
) -> None:
    model = f"killed-{victims[0]}-first"
    kills = [f"{victims[number % 2]} {point}" for number, point in enumerate(spread(points, shift))]
    (octet.home.parent / "plan").write_text("\n".join([*kills, ""]))
    before = octet.client.get("/v1/models/steady").json()
    with Bystander(octet) as bystander:
        build_id = upload_until_answered(octet, model)
        build = follow(octet, build_id)
        wait_for(lambda: not (octet.home.parent / "plan").read_text(), "the last kill", 10, octet)
        wait_for(lambda: revive(octet) and octet.is_ready(), "octet to be ready again", 60, octet)
    assert build["state"] == "succeeded", build["error"]
    assert build["error"] is None
    versions = octet.client.get(f"/v1/models/{model}").json()["versions"]
    assert [version["version"] for version in versions] == [1]
    assert (
        len([build for build in octet.client.get("/v1/builds").json()["builds"] if build["model"] == model])
        == 1
    )
    wait_for(lambda: octet.serves(model), "the version to be served", 30, octet)
    assert octet.infer(model).status_code == 200
    # The earlier version: the same, and it answered whenever there was a server.
    after = octet.client.get("/v1/models/steady").json()
    assert [version["version"] for version in after["versions"]] == [1] == [len(before["versions"])]
    assert not bystander.wrong
    assert bystander.answers > 10
    # One supervisor, one server, one worker; no child of a worker that died.
    assert (
        sorted(len(octet.processes(name)) for name in ("service.cli", "service.server", "service.worker"))
        == [1] * 3
    )
    wait_for(lambda: not octet.processes("service.builds.child"), "the last child to end", 10, octet)
    assert not bystander.second_workers


def test_a_killed_service_leaves_no_process(octet: Octet, points: list[str]) -> None:
    build = octet.upload("orphans", force=True).json()
    wait_for(lambda: bool(octet.build_children()), "a child to work", 30, octet)
    octet.kill()
    killed = time.monotonic()
    wait_for(lambda: not octet.processes(), "every process to end", 5, octet)
    assert time.monotonic() - killed < 5
    octet.start()
    assert octet.ended(build["id"])["state"] == "succeeded"


def passed(octet: Octet) -> list[str]:
    return (octet.home.parent / "plan.passed").read_text().splitlines()


def spread(points: list[str], shift: int) -> list[str]:
    """Each point once; of those with a detail, the phase's name, one for each phase, beginning with number `shift`."""
    distinct = [point.split(" ") for point in dict.fromkeys(points)]
    kinds = list(dict.fromkeys(point[1] for point in distinct if len(point) > 2))
    phases = list(dict.fromkeys(point[2] for point in distinct if len(point) > 2))
    return [
        " ".join(point)
        for point in distinct
        if len(point) == 2 or (phases.index(point[2]) + shift) % len(kinds) == kinds.index(point[1])
    ]


def upload_until_answered(octet: Octet, model: str) -> str:
    """What a client does whose connection broke: it posts again."""
    deadline = time.monotonic() + UPLOAD_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = octet.upload(model)
            assert answer.status_code in (200, 202), answer.text
            return str(answer.json()["id"])
        assert time.monotonic() < deadline
        revive(octet)
        time.sleep(0.1)


def follow(octet: Octet, build_id: str) -> dict[str, Any]:
    """Waits for the end of a build, starting the service again whenever it was killed."""
    deadline = time.monotonic() + BUILD_S
    while time.monotonic() < deadline:
        revive(octet)
        with contextlib.suppress(httpx.TransportError):
            build = octet.build(build_id)
            if build["state"] not in ("queued", "running"):
                return build
        time.sleep(0.1)
    raise TimeoutError(octet.log[-3000:])


def revive(octet: Octet) -> bool:
    """Starts the service again where it was killed."""
    if octet.poll() is not None:
        octet.spawn()
    return True


class Bystander:
    """A client that uses an earlier version all along, and an eye on how many workers there are."""

    def __init__(self, octet: Octet) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self.second_workers: list[list[int]] = []
        self._octet = octet
        self._right = octet.infer("steady").json()["outputs"]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._infer), threading.Thread(target=self._count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _infer(self) -> None:
        while not self._stop.wait(0.1):
            # The server itself is among the victims: no answer is no wrong answer.
            with contextlib.suppress(httpx.TransportError):
                answer = self._octet.infer("steady")
                if answer.status_code == 200 and answer.json()["outputs"] == self._right:
                    self.answers += 1
                elif answer.status_code != 503:
                    self.wrong.append(answer.text)

    def _count(self) -> None:
        before: set[int] = set()
        while not self._stop.wait(0.5):
            workers = set(self._octet.processes("service.worker"))
            # One that dies may be seen beside its successor, which waits for it, but not for long.
            if len(workers & before) > 1:
                self.second_workers.append(sorted(workers))
            before = workers
