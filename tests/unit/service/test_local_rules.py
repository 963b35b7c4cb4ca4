import os
import time
from pathlib import Path

import pytest

from service.catalog.catalog import Catalog
from service.catalog.retention import Retention
from service.retention.engine_uses import EngineUses
from service.retention.local import CachedEngines, PartialUploads, local_rules
from service.retention.rules import Removal, Rule
from service.settings import Settings
from service.storage.folder_store import FolderStore
from tests.unit.service.followed import publish

HOUR_S = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def uses(tmp_path: Path) -> EngineUses:
    return EngineUses(tmp_path / "engine-uses.json", tmp_path / "engines")


@pytest.fixture
def rule(tmp_path: Path, catalog: Catalog, uses: EngineUses) -> CachedEngines:
    return CachedEngines(tmp_path / "engines", uses, Retention(catalog), keep_s=HOUR_S)


def applied(rule: Rule) -> Removal:
    return rule.apply(lambda: None)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def cached(tmp_path: Path, name: str, seconds: float = 0.0) -> Path:
    path = tmp_path / "engines" / "here" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"engine")
    age(path, seconds)
    return path


def test_half_written_uploads_go_when_nobody_writes_to_them(store: FolderStore) -> None:
    died, writing = store.writer(), store.writer()
    for writer in (died, writing):
        writer.write(b"half")
        writer.seal()
    age(died._path, HOUR_S + 60)
    rule = PartialUploads(store, keep_s=HOUR_S)
    assert rule.due() == Removal(count=1, size_bytes=4)
    assert died._path.exists()
    assert applied(rule) == Removal(count=1, size_bytes=4)
    assert (died._path.exists(), writing._path.exists()) == (False, True)
    assert applied(rule) == Removal()
    writing.discard()


def test_engines_go_when_nobody_uses_them(rule: CachedEngines, tmp_path: Path) -> None:
    old, young = cached(tmp_path, "old.engine", HOUR_S + 60), cached(tmp_path, "young.engine", HOUR_S - 60)
    half_written = cached(tmp_path, ".engine-x7", HOUR_S + 60)
    other = cached(tmp_path, "notes.txt", HOUR_S + 60)
    assert rule.due() == Removal(count=2, size_bytes=12)
    assert old.exists()
    assert applied(rule) == Removal(count=2, size_bytes=12)
    assert [path.exists() for path in (old, young, half_written, other)] == [False, True, False, True]


def test_engines_of_deleted_versions_go_at_once(
    rule: CachedEngines, tmp_path: Path, catalog: Catalog, uses: EngineUses
) -> None:
    deleted, stays = publish(catalog, "m"), publish(catalog, "m")
    theirs, shared, nobodys = (cached(tmp_path, f"{name}.engine") for name in ("theirs", "shared", "nobodys"))
    uses.note(deleted.build_id, [theirs, shared])
    uses.note(stays.build_id, [shared])
    assert rule.due() == Removal()
    catalog.delete_version("m", deleted.number)
    assert rule.due() == Removal(count=1, size_bytes=6)
    assert applied(rule) == Removal(count=1, size_bytes=6)
    assert [path.exists() for path in (theirs, shared, nobodys)] == [False, True, True]
    assert rule.due() == Removal()


def test_without_a_cache_there_is_nothing_to_do(rule: CachedEngines, store: FolderStore) -> None:
    assert (rule.due(), applied(rule)) == (Removal(), Removal())
    assert PartialUploads(store, keep_s=0.0).due() == Removal()


def test_settings_reach_their_rules(tmp_path: Path, catalog: Catalog, store: FolderStore) -> None:
    uploads, engines = local_rules(
        Settings(home=tmp_path, keep_partial_uploads_s=HOUR_S, keep_engines_s=2 * HOUR_S), catalog, store
    )
    cached(tmp_path, "old.engine", 1.5 * HOUR_S)
    writer = store.writer()
    age(writer._path, 1.5 * HOUR_S)
    assert (uploads.due().count, engines.due().count) == (1, 0)
    writer.discard()
