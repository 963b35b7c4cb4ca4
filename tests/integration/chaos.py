"""Load on a fleet, and harm to it: what is asked of octet while its processes, its database and its store die."""

import contextlib
import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from tests.integration.fleet import Fleet
from tests.integration.running import ROOT, Octet

STEADY = "steady"
"""The model that is asked for all along."""
UPLOAD_S = 90.0
INFER_EVERY_S = 0.1
MOST_BUILDS = 3
"""More would only wait."""
_OUTPUT_TOLERANCE = 1e-6
_names = itertools.count(1)


@dataclass(kw_only=True)
class Tally:
    """What clients saw."""

    answers: int = 0
    # Answers that were no answer: status and text.
    refused: list[str] = field(default_factory=list)
    # Connections that broke: their server was killed.
    broken: int = 0
    # When an answer came, of any server, on time.monotonic.
    answered_at_s: list[float] = field(default_factory=list)
    # Ids of the builds whose upload was answered.
    accepted: list[str] = field(default_factory=list)

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """The longest time between `start_s` and `end_s` without any answer."""
        inside = [at for at in self.answered_at_s if start_s <= at <= end_s]
        marks = [start_s, *inside, end_s]
        return max(later - earlier for earlier, later in itertools.pairwise(marks))


class Load:
    """Clients that infer at every server, and one that uploads, until the block ends."""

    def __init__(self, fleet: Fleet, *, seed: int, upload_every_s: float) -> None:
        self.tally = Tally()
        self._fleet = fleet
        self._random = random.Random(seed)
        self._upload_every_s = upload_every_s
        self._stop = threading.Event()
        self._right = fleet.servers[0].infer(STEADY).json()["outputs"]
        self._threads = [
            *(threading.Thread(target=self._infer, args=(server,)) for server in fleet.servers),
            threading.Thread(target=self._upload),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _infer(self, server: Octet) -> None:
        while not self._stop.wait(INFER_EVERY_S):
            try:
                answer = server.infer(STEADY)
            except httpx.TransportError:
                self.tally.broken += 1
                continue
            if answer.status_code == 200 and _close(answer.json()["outputs"], self._right):
                self.tally.answers += 1
                self.tally.answered_at_s.append(time.monotonic())
            else:
                self.tally.refused.append(f"{answer.status_code} {answer.text[:200]}")

    def _upload(self) -> None:
        going_on: list[str] = []
        while not self._stop.wait(self._upload_every_s):
            going_on = [build_id for build_id in going_on if self._goes_on(build_id)]
            if len(going_on) < MOST_BUILDS:
                # A name of its own: one build, one model, one version.
                model = f"chaos-{next(_names)}"
                going_on.append(upload_until_answered(self._fleet, model, self._random))
                self.tally.accepted.append(going_on[-1])

    def _goes_on(self, build_id: str) -> bool:
        build = self._fleet.build(build_id)
        return build is None or build["state"] in ("queued", "running")


def upload_until_answered(fleet: Fleet, model: str, chance: random.Random) -> str:
    """What a client does whose connection broke, or who was told to come back: it posts again."""
    deadline = time.monotonic() + UPLOAD_S
    while time.monotonic() < deadline:
        fleet.revive()
        with contextlib.suppress(httpx.TransportError):
            answer = chance.choice(fleet.servers).upload(model)
            if answer.status_code in (200, 202):
                return str(answer.json()["id"])
            if answer.status_code != 503:
                raise AssertionError(answer.text)
        time.sleep(0.3)
    raise TimeoutError(f"nobody took the upload of {model}\n{fleet.logs}")


def points(passed: Path) -> list[str]:
    """Each crash point that was passed, in order; of those that every phase passes, each phase gives one."""
    distinct = [point.split(" ") for point in dict.fromkeys(passed.read_text().splitlines())]
    kinds = list(dict.fromkeys(point[1] for point in distinct if len(point) > 2))
    phases = list(dict.fromkeys(point[2] for point in distinct if len(point) > 2))
    return [
        " ".join(point)
        for point in distinct
        if len(point) == 2 or phases.index(point[2]) % len(kinds) == kinds.index(point[1])
    ]


def written_points() -> set[str]:
    """Every crash point on the way of a build in a fleet: it has no folder of blobs, and no sweep comes so soon."""
    sources = [path for path in (ROOT / "service").rglob("*.py") if path.stem != "folder_store"]
    return set(re.findall(r'reached\("(?!sweep\.)([a-z._]+)"', "".join(path.read_text() for path in sources)))


def kill_at_random(fleet: Fleet, *, seed: int, for_s: float, every_s: float) -> int:
    """Kills a process of the fleet every now and then, or one with its supervisor; returns how many."""
    chance, kills = random.Random(seed), 0
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        member = chance.choice(fleet.members)
        with contextlib.suppress(ProcessLookupError):
            if chance.random() < 0.3:
                member.kill()
                kills += 1
            elif victims := member.processes("service.server") or member.processes("service.worker"):
                os.kill(victims[0], signal.SIGKILL)
                kills += 1
        time.sleep(chance.uniform(0.5, 1.5) * every_s)
        fleet.revive()
    return kills


@contextlib.contextmanager
def database_away(fleet: Fleet) -> Iterator[None]:
    """The database is not there inside of the block."""
    fleet.database.stop()
    try:
        yield
    finally:
        fleet.database.start()


@contextlib.contextmanager
def store_away(fleet: Fleet) -> Iterator[None]:
    """The store is not there inside of the block."""
    fleet.stop_store()
    try:
        yield
    finally:
        fleet.start_store()


def check_nothing_lost(fleet: Fleet, accepted: list[str], timeout_s: float) -> None:
    """Every accepted build has become one version, whole and served by every server that says it is ready."""
    builds = [fleet.ended(build_id, timeout_s) for build_id in accepted]
    assert [build["state"] for build in builds] == ["succeeded"] * len(builds), builds
    fleet.revive()
    fleet.wait_until_ready()
    assert [server.infer(STEADY).status_code for server in fleet.servers] == [200] * len(fleet.servers), (
        "who says that it is ready answers"
    )
    models = fleet.servers[0].client.get("/v1/models").json()["models"]
    found = {
        (model["name"], version["build"], version["version"])
        for model in models
        for version in model["versions"]
        if model["name"] != STEADY
    }
    ours = {(build["model"], build["id"], 1) for build in builds}
    assert {version for version in found if version[0] in {build["model"] for build in builds}} == ours
    for server in fleet.servers:
        for build in builds:
            model = build["model"]
            report = server.client.get(f"/v1/models/{model}/versions/1/artifact")
            assert report.status_code == 200
            fleet.wait(lambda model=model, server=server: server.serves(model), f"{model} to be served", 60)
            assert server.infer(model).status_code == 200
    for build in builds:
        # What comes next need not load them at every start.
        fleet.servers[0].client.delete(f"/v1/models/{build['model']}").raise_for_status()


def _close(outputs: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return all(
        abs(value - expected) <= _OUTPUT_TOLERANCE
        for output, known in zip(outputs, right, strict=True)
        for value, expected in zip(output["data"], known["data"], strict=True)
    )
