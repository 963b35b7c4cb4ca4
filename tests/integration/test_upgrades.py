"""octet is replaced by another release in the middle of a build, which is finished."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import PostgreSQL
from tests.integration.fleet import fleet
from tests.integration.running import ROOT, Octet, wait_for

QUEUE_NAME = 'self._name = f"builds-{leases.hardware}"'
EXECUTOR = '"executor_id": self._leases.worker,'
WORKFLOW = "claim = patiently(lambda: leases.claim(build_id, str(DBOS.workflow_id)))"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the code, which a test may change."""
    for package in ("engines", "service"):
        shutil.copytree(ROOT / package, tmp_path / "source" / package)
    return tmp_path / "source"


def edit(source: Path, before: str, after: str) -> None:
    path = source / "service" / "builds" / "workflow.py"
    text = path.read_text()
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, after))


def another_release(source: Path, _: Octet) -> None:
    """Other code of the workflow, and of dbos another release: all that dbos's own application version is made of."""
    edit(source, WORKFLOW, f"logger.info('another release')\n    {WORKFLOW}")
    (source / "sitecustomize.py").write_text(
        "from dbos._utils import GlobalParams\nGlobalParams.dbos_version = '99.0'\n"
    )


def other_steps(source: Path, _: Octet) -> None:
    """Steps that the earlier builds cannot go on with."""
    edit(source, "\nSTEPS = 1\n", "\nSTEPS = 2\n")


def from_one_queue(source: Path, octet: Octet) -> None:
    """The release before: one queue, one worker without a name, and no claims."""
    edit(source, '= "builds"', QUEUE_NAME.partition(" ")[2])
    edit(source, '"executor_id": "worker",', EXECUTOR)
    with sqlite3.connect(octet.home / "catalog.db") as catalog:
        catalog.execute("UPDATE builds SET run = NULL, worker = NULL, claim = 0, hardware = NULL")
        catalog.execute("DELETE FROM workers")
    catalog.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("upgrade", [another_release, other_steps, from_one_queue])
def test_a_build_goes_on_after_an_upgrade(
    source: Path, tmp_path: Path, upgrade: Callable[[Path, Octet], None]
) -> None:
    octet = Octet(tmp_path / "home", source=source)
    if upgrade is from_one_queue:
        edit(source, QUEUE_NAME, 'self._name = "builds"')
        edit(source, EXECUTOR, '"executor_id": "worker",')
    try:
        octet.start()
        going_on = octet.upload().json()["id"]
        waiting = octet.upload("waiting").json()["id"]
        wait_for(lambda: octet.build(going_on)["phase"] == "calibrate", "the third phase", 60, octet)
        octet.kill()
        wait_for(lambda: not octet.processes(), "every process to end", 10, octet)
        upgrade(source, octet)
        octet.start()
        before = octet.build(going_on)
        for build_id in (going_on, waiting):
            build = octet.ended(build_id, 120)
            assert build["state"] == "succeeded", build["error"]
        done = octet.build(going_on)
        if upgrade is not other_steps:
            assert done["timings_s"]["validate"] == before["timings_s"]["validate"], "it was not done again"
        assert [len(model["versions"]) for model in octet.client.get("/v1/models").json()["models"]] == [1, 1]
        assert ("another release" in octet.log) is (upgrade is another_release)
    finally:
        octet.client.close()
        octet.stop()


@pytest.mark.timeout(300)
def test_a_build_of_a_fleet_goes_on_with_a_worker_of_another_release(
    source: Path, tmp_path: Path, postgresql_server: PostgreSQL
) -> None:
    with fleet(tmp_path, postgresql_server) as octets:
        server, old = octets.add_server(), octets.add_worker()
        octets.wait_until_ready()
        another_release(source, server)
        new = Octet(
            tmp_path / "new",
            command="worker",
            source=source,
            environment={"OCTET_THREADS": "1", **octets.environment},
        )
        build_id = server.upload().json()["id"]
        octets.wait(lambda: server.build(build_id)["phase"] == "calibrate", "the third phase", 60)
        assert octets.migrate().returncode == 0
        octets.workers.append(new)
        new.spawn()
        before = server.build(build_id)
        octets.workers.remove(old)
        old.client.close()
        # In order, as an upgrade does: the build need not wait for the end of its lease.
        assert old.stop() == 0
        done = octets.ended(build_id)
        assert done["state"] == "succeeded", done["error"]
        assert done["timings_s"]["validate"] == before["timings_s"]["validate"], "it was not done again"
        assert "another release" in new.log
        octets.wait(lambda: server.serves("digits"), "the version to be served by the release before", 60)
        assert server.infer("digits").status_code == 200
