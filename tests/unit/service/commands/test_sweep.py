from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.catalog.catalog import Catalog
from service.cli import app
from service.storage.folder_store import FolderStore
from tests.unit.service.kept import age_build, uploaded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTET_HOME", str(tmp_path))
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    build = uploaded(catalog, FolderStore(tmp_path / "store"), "a")
    catalog.fail(build.id, error="no.", code="x")
    age_build(catalog, build, 8 * 24 * 3600.0)
    catalog.close()
    return tmp_path


def blobs(home: Path) -> int:
    return len(list(FolderStore(home / "store").digests(older_than_s=-60)))


def test_a_dry_run_says_what_would_go_and_the_real_one_removes_it(home: Path) -> None:
    dry = CliRunner().invoke(app, ["sweep", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "would remove 1 builds' samples, 9 bytes\n" in dry.stdout
    assert "would remove 0 builds without a version\n" in dry.stdout
    assert blobs(home) == 2
    real = CliRunner().invoke(app, ["sweep"])
    assert real.exit_code == 0, real.output
    assert "removed 1 builds' samples, 9 bytes\n" in real.stdout
    assert blobs(home) == 1
    assert "removed 0 builds' samples\n" in CliRunner().invoke(app, ["sweep"]).stdout


def test_what_could_not_be_removed_is_said_with_the_reason(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FolderStore, "delete", refuse)
    done = CliRunner().invoke(app, ["sweep"])
    assert done.exit_code == 1
    assert "builds' samples: [Errno 30] Read-only file system" in done.stdout
