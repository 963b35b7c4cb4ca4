import logging
from pathlib import Path
from typing import Any

import pytest

from service.catalog.catalog import Catalog
from service.catalog.records import Samples
from service.errors import StoreUnavailableError
from service.retention.rules import Removal
from service.retention.sweeper import Line, Sweeper
from service.settings import Settings
from service.storage.folder_store import FolderStore
from tests.unit.service.kept import MODEL, SAMPLES, age_build, published, stored, there, uploaded


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def settings(home: Path, **values: Any) -> Settings:
    return Settings(home=home, **values).model_copy(update={"keep_unnamed_s": -60.0})


def fleet(home: Path) -> Settings:
    return settings(home, database_url="postgresql://h/d", store_url="s3://b")


def counts(lines: list[Line]) -> dict[str, int]:
    return {line.what: line.removal.count for line in lines if line.removal.count}


def failed_long_ago(catalog: Catalog, store: FolderStore) -> None:
    build = uploaded(catalog, store, "a")
    catalog.fail(build.id, error="no.", code="x")
    age_build(catalog, build, 1e9)


def test_a_sweep_removes_what_is_due_and_says_so(
    catalog: Catalog, store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed_long_ago(catalog, store)
    sweeper = Sweeper(settings(tmp_path), catalog, store)
    with caplog.at_level(logging.INFO):
        lines = sweeper.sweep()
    assert counts(lines) == {"builds' samples": 1, "builds without a version": 1, "files in the store": 1}
    assert "removed 1 builds' samples, 9 bytes" in caplog.messages
    assert "removed 1 files in the store, 7 bytes" in caplog.messages
    assert "build.forget by sweep: done" in caplog.messages
    assert len(caplog.messages) == 4
    assert counts(sweeper.sweep()) == {}


def test_a_preview_counts_and_removes_nothing(catalog: Catalog, store: FolderStore, tmp_path: Path) -> None:
    failed_long_ago(catalog, store)
    stored(store, "nobody's")
    sweeper = Sweeper(settings(tmp_path), catalog, store)
    for _ in range(2):
        assert counts(sweeper.preview()) == {
            "builds' samples": 1,
            "builds without a version": 1,
            "files in the store": 1,
        }
    assert len(list(store.digests(older_than_s=-60))) == 3


def test_one_rule_that_fails_leaves_the_others_alone(
    catalog: Catalog,
    store: FolderStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed_long_ago(catalog, store)

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("the store does not answer; try again later.")

    monkeypatch.setattr(store, "delete", away)
    lines = Sweeper(settings(tmp_path), catalog, store).sweep()
    assert counts(lines) == {"builds without a version": 1}
    problems = {line.what: line.problem for line in lines if line.problem}
    assert problems == dict.fromkeys(
        ("builds' samples", "files in the store"), "the store does not answer; try again later."
    )
    assert "builds' samples cannot be removed: the store does not answer" in caplog.text


def test_of_a_fleet_one_sweeps_the_shared_things_and_each_its_own(
    catalog: Catalog, store: FolderStore, tmp_path: Path
) -> None:
    first, second = (Sweeper(fleet(tmp_path / name), catalog, store) for name in "ab")
    failed_long_ago(catalog, store)
    assert counts(first.sweep_when_due())["builds without a version"] == 1
    failed_long_ago(catalog, store)
    assert [line.what for line in second.sweep_when_due()] == ["half-written files", "cached engines"]
    assert counts(second.sweep())["builds without a version"] == 1, "a command does not wait for its turn"


def test_a_sweep_of_a_fleet_ends_though_it_fails(
    catalog: Catalog, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = fleet(tmp_path).model_copy(update={"sweep_every_s": 0.0})
    first, second = Sweeper(eager, catalog, store), Sweeper(eager, catalog, store)
    with monkeypatch.context() as patched:
        patched.setattr("service.retention.shared.FruitlessBuilds.apply", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first.sweep_when_due()
    assert len(second.sweep_when_due()) > 2


def test_one_machine_sweeps_without_a_note_of_it(
    catalog: Catalog, store: FolderStore, tmp_path: Path
) -> None:
    """A disk without room for a note would else never be swept."""
    sweeper = Sweeper(settings(tmp_path), catalog, store)
    for _ in range(2):
        failed_long_ago(catalog, store)
        assert counts(sweeper.sweep_when_due())["builds without a version"] == 1


def test_samples_that_are_to_go_at_once_go_without_a_whole_sweep(
    catalog: Catalog, store: FolderStore, tmp_path: Path
) -> None:
    keeps, deletes = (uploaded(catalog, store, str(wish), samples=wish) for wish in Samples)
    for build in (keeps, deletes):
        published(catalog, store, build)
    nobodys = stored(store, "nobody's")
    lines = Sweeper(settings(tmp_path), catalog, store).remove_samples_at_once()
    assert lines == [Line(what="builds' samples", removal=Removal(count=1, size_bytes=len("samples delete")))]
    assert there(store, deletes.files) == {MODEL}
    assert there(store, keeps.files) == {MODEL, SAMPLES}
    assert store.has(nobodys)
