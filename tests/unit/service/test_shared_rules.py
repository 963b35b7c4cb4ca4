"""What of the catalog and the store goes with time, and what never does, in each kind of database and of store."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.catalog.catalog import Build, BuildState, Catalog
from service.catalog.engine_states import EngineStates
from service.catalog.holds import Holds
from service.catalog.records import Samples
from service.catalog.retention import AT_ONCE, Retention
from service.errors import NotFoundError, StoreUnavailableError
from service.retention import shared
from service.retention.rules import Removal, Rule
from service.retention.shared import (
    EndedSamples,
    FruitlessBuilds,
    OldVersions,
    StoredEngines,
    UnnamedBlobs,
    shared_rules,
)
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.folder_store import FolderStore
from service.storage.object_store import ObjectStore
from tests.databases import PostgreSQL
from tests.s3 import BUCKET, s3_environment, s3_server
from tests.unit.service.kept import (
    MODEL,
    SAMPLES,
    age_build,
    age_engines,
    age_version,
    engine,
    published,
    stored,
    there,
    uploaded,
)

DAY_S = 24 * 3600.0


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url, s3_environment(url):
        yield url


@pytest.fixture(params=["one machine", "fleet"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Catalog, BlobStore]]:
    """SQLite with a folder, PostgreSQL with S3."""
    if request.param == "one machine":
        catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
        store: BlobStore = FolderStore(tmp_path / "store")
    else:
        request.getfixturevalue("s3")
        server: PostgreSQL = request.getfixturevalue("postgresql_server")
        catalog = Catalog(server.new_catalog())
        store = ObjectStore(BUCKET, tmp_path.name, incoming=tmp_path / "incoming")
    yield catalog, store
    catalog.close()


@pytest.fixture
def catalog(kept: tuple[Catalog, BlobStore]) -> Catalog:
    return kept[0]


@pytest.fixture
def store(kept: tuple[Catalog, BlobStore]) -> BlobStore:
    return kept[1]


@pytest.fixture
def retention(catalog: Catalog) -> Retention:
    return Retention(catalog)


def settings(**values: Any) -> Settings:
    # Blobs are young in these tests, and S3 tells their age in whole seconds.
    return Settings(**values).model_copy(update={"keep_unnamed_s": -60.0})


def sweep(catalog: Catalog, store: BlobStore, **values: Any) -> dict[str, Removal]:
    return {rule.what: applied(rule) for rule in shared_rules(settings(**values), catalog, store)}


def applied(rule: Rule) -> Removal:
    return rule.apply(lambda: None)


def end(catalog: Catalog, store: BlobStore, build: Build, how: BuildState) -> None:
    if how is BuildState.SUCCEEDED:
        published(catalog, store, build)
    elif how is BuildState.FAILED:
        catalog.fail(build.id, error="no.", code="x")
    else:
        catalog.cancel(build.id)


ENDS = (BuildState.SUCCEEDED, BuildState.FAILED, BuildState.CANCELLED)


@pytest.mark.parametrize("how", ENDS)
def test_samples_that_were_to_be_deleted_go_once_the_build_has_ended(
    catalog: Catalog, store: BlobStore, retention: Retention, how: BuildState
) -> None:
    build = uploaded(catalog, store, "a", samples=Samples.DELETE, **{"upload/labels.npy": "labels"})
    catalog.begin_phase(build.id, "validate", 0.0)
    catalog.finish_phase(
        build.id, "validate", seconds=1.0, files={"samples/000.npz": stored(store, "converted")}
    )
    at_once = EndedSamples(retention, store)
    assert (at_once.due(), applied(at_once)) == (Removal(), Removal())
    assert there(store, catalog.build(build.id).files) == {
        MODEL,
        SAMPLES,
        "upload/labels.npy",
        "samples/000.npz",
    }
    end(catalog, store, build, how)
    size_bytes = len("samples a" + "labels" + "converted")
    assert at_once.due() == Removal(count=1, size_bytes=size_bytes)
    before = time.time()
    assert applied(at_once) == Removal(count=1, size_bytes=size_bytes)
    ended = catalog.build(build.id)
    assert there(store, ended.files) == {MODEL}
    assert ended.samples_removed_at is not None
    assert before - 1 < ended.samples_removed_at < time.time() + 1
    assert (at_once.due(), applied(at_once)) == (Removal(), Removal())


@pytest.mark.parametrize("how", ENDS)
def test_samples_are_kept_for_their_time_and_not_longer(
    catalog: Catalog, store: BlobStore, how: BuildState
) -> None:
    build = uploaded(catalog, store, "a")
    end(catalog, store, build, how)
    age_build(catalog, build, DAY_S - 60)
    sweep(catalog, store, keep_samples_s=DAY_S)
    assert there(store, build.files) == {MODEL, SAMPLES}
    assert catalog.build(build.id).samples_removed_at is None
    age_build(catalog, build, DAY_S + 60)
    assert sweep(catalog, store, keep_samples_s=DAY_S)["builds' samples"] == Removal(
        count=1, size_bytes=len("samples a")
    )
    assert there(store, build.files) == {MODEL}


def test_where_no_samples_are_due_nobody_waits_for_a_turn(
    catalog: Catalog, store: BlobStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a fleet ask every few seconds."""
    uploaded(catalog, store, "a", samples=Samples.DELETE)

    def turn() -> object:
        raise AssertionError("a turn was taken")

    monkeypatch.setattr(catalog, "turn", turn)
    assert applied(EndedSamples(retention, store)) == Removal()


def test_samples_that_a_build_still_needs_or_keeps_stay_though_another_wants_them_gone(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    """Blobs are named by their content: the same file belongs to whoever sent it."""
    wants_them_gone = uploaded(catalog, store, "a", samples=Samples.DELETE, sent="shared")
    goes_on, keeps = (
        uploaded(catalog, store, "b", sent="shared"),
        uploaded(catalog, store, "c", sent="shared"),
    )
    end(catalog, store, wants_them_gone, BuildState.SUCCEEDED)
    end(catalog, store, keeps, BuildState.SUCCEEDED)
    at_once = EndedSamples(retention, store)
    assert at_once.due() == Removal(count=1)
    assert applied(at_once) == Removal(count=1)
    assert store.has(goes_on.files[SAMPLES])
    age_build(catalog, keeps, 60)
    applied(EndedSamples(retention, store, keep_s=0.0))
    assert store.has(goes_on.files[SAMPLES])
    # The last one that has a reason takes it along.
    end(catalog, store, goes_on, BuildState.FAILED)
    age_build(catalog, goes_on, 60)
    applied(EndedSamples(retention, store, keep_s=0.0))
    assert not store.has(goes_on.files[SAMPLES])


def test_all_are_seen_to_though_they_are_many(
    catalog: Catalog,
    store: BlobStore,
    retention: Retention,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.catalog.retention.AT_ONCE", 2)
    monkeypatch.setattr(shared, "REMOVED_AT_ONCE", 2)
    builds = [uploaded(catalog, store, str(number), samples=Samples.DELETE) for number in range(5)]
    for build in builds:
        end(catalog, store, build, BuildState.CANCELLED)
    assert applied(EndedSamples(retention, store)).count == 5
    beats: list[int] = []
    sweep(catalog, store)
    for build in builds:
        age_build(catalog, build, 60)
    with caplog.at_level("INFO", "octet.audit"):
        applied(FruitlessBuilds(retention, keep_s=0.0))
    told = [(vars(line)["action"], vars(line)["key_name"], vars(line)["build"]) for line in caplog.records]
    assert sorted(told) == sorted(("build.forget", "sweep", build.id) for build in builds)
    unnamed = UnnamedBlobs(retention, store, keep_s=-60.0)
    assert unnamed.due().count == 5
    assert unnamed.apply(lambda: beats.append(1)).count == 5
    assert len(beats) == 3


def test_a_forgotten_build_takes_along_what_nothing_else_keeps(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    build = uploaded(catalog, store, "a", sent="the same")
    end(catalog, store, build, BuildState.FAILED)
    other = uploaded(catalog, store, "b", sent="the same")
    retention.forget(build.id, store.delete)
    assert there(store, build.files) == {SAMPLES}, "the other build has the same"
    assert there(store, other.files) == {MODEL, SAMPLES}


def test_a_store_that_goes_away_in_the_middle_leaves_samples_to_the_next_sweep(
    catalog: Catalog, store: BlobStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = uploaded(catalog, store, "a", samples=Samples.DELETE)
    end(catalog, store, build, BuildState.FAILED)

    def away(_: object) -> None:
        raise StoreUnavailableError("the store does not answer; try again later.")

    with monkeypatch.context() as patched:
        patched.setattr(store, "delete", away)
        with pytest.raises(StoreUnavailableError):
            applied(EndedSamples(retention, store))
    assert catalog.build(build.id).samples_removed_at is None
    assert applied(EndedSamples(retention, store)).count == 1


def test_a_sweep_that_was_cut_off_after_it_removed_samples_is_done_again(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    build = uploaded(catalog, store, "a", samples=Samples.DELETE)
    end(catalog, store, build, BuildState.FAILED)
    store.delete([build.files[SAMPLES]])
    fresh = EndedSamples(retention, store)
    assert applied(fresh).count == 1
    assert catalog.build(build.id).samples_removed_at is not None


@pytest.mark.parametrize("how", [BuildState.FAILED, BuildState.CANCELLED])
def test_failed_builds_are_forgotten_after_their_time_with_their_files(
    catalog: Catalog, store: BlobStore, how: BuildState
) -> None:
    build, other = uploaded(catalog, store, "a"), uploaded(catalog, store, "b")
    for ended in (build, other):
        end(catalog, store, ended, how)
    age_build(catalog, build, DAY_S + 60)
    age_build(catalog, other, DAY_S - 60)
    removed = sweep(catalog, store, keep_failed_builds_s=DAY_S)
    assert removed["builds without a version"].count == 1
    assert removed["files in the store"] == Removal(count=2, size_bytes=len("model a" + "samples a"))
    with pytest.raises(NotFoundError):
        catalog.build(build.id)
    assert there(store, build.files) == set()
    assert there(store, other.files) == {MODEL, SAMPLES}


def test_builds_that_go_on_and_those_with_a_version_are_never_forgotten(
    catalog: Catalog, store: BlobStore
) -> None:
    waiting, running, done = (uploaded(catalog, store, name) for name in "abc")
    catalog.begin_phase(running.id, "validate", 0.0)
    version = published(catalog, store, done)
    for build in (waiting, running, done):
        age_build(catalog, build, 1000 * DAY_S)
    removed = sweep(catalog, store, keep_failed_builds_s=0.0, keep_samples_s=0.0)
    assert removed["builds without a version"] == Removal()
    assert removed["builds' samples"].count == 1
    for build in (waiting, running):
        assert there(store, build.files) == {MODEL, SAMPLES}
    assert there(store, version.files) == set(version.files)


def test_a_deleted_version_takes_its_samples_along_and_its_build_is_forgotten_in_time(
    catalog: Catalog, store: BlobStore
) -> None:
    build = uploaded(catalog, store, "a")
    version = published(catalog, store, build)
    catalog.delete_version("m", version.number)
    sweep(catalog, store)
    assert there(store, {**version.files, **build.files}) == set()
    assert catalog.build(build.id).state is BuildState.SUCCEEDED
    age_build(catalog, build, 60)
    assert sweep(catalog, store, keep_failed_builds_s=0.0)["builds without a version"].count == 1


def versions(catalog: Catalog, store: BlobStore, count: int) -> list[Any]:
    made = [published(catalog, store, uploaded(catalog, store, str(number))) for number in range(count)]
    for version in made:
        age_version(catalog, version, DAY_S)
    return made


def numbers(catalog: Catalog) -> list[int]:
    return [version.number for version in catalog.versions("m")]


def test_versions_are_kept_for_ever_unless_somebody_asks(catalog: Catalog, store: BlobStore) -> None:
    versions(catalog, store, 4)
    assert not any(isinstance(rule, OldVersions) for rule in shared_rules(Settings(), catalog, store))
    sweep(catalog, store, keep_versions_s=0.0)
    assert numbers(catalog) == [1, 2, 3, 4]


def test_the_default_and_the_newest_others_are_kept(catalog: Catalog, store: BlobStore) -> None:
    first, *_, last = versions(catalog, store, 5)
    catalog.set_default("m", 2)
    rule = OldVersions(settings(keep_versions_s=3600.0), catalog, 2)
    assert rule.due() == Removal(count=2)
    assert sweep(catalog, store, keep_versions=2, keep_versions_s=3600.0)["versions"] == Removal(count=2)
    assert numbers(catalog) == [2, 4, 5]
    assert not store.has(first.files["proof.npz"])
    assert store.has(last.files["proof.npz"])
    assert sweep(catalog, store, keep_versions=0, keep_versions_s=3600.0)["versions"] == Removal(count=2)
    assert numbers(catalog) == [2]


def test_young_versions_and_those_that_requests_ask_for_are_kept(catalog: Catalog, store: BlobStore) -> None:
    young, used, forgotten, _ = versions(catalog, store, 4)
    age_version(catalog, young, 60)
    age_version(catalog, used, DAY_S, used_s=60)
    age_version(catalog, forgotten, DAY_S, used_s=7200)
    sweep(catalog, store, keep_versions=0, keep_versions_s=3600.0)
    assert numbers(catalog) == [young.number, used.number, 4]


def test_a_version_that_became_the_default_meanwhile_stays(
    catalog: Catalog, store: BlobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    versions(catalog, store, 3)
    rule = OldVersions(settings(keep_versions_s=0.0), catalog, 0)
    monkeypatch.setattr(rule, "_due", lambda: [("m", 1), ("m", 2), ("m", 9)])
    catalog.set_default("m", 1)
    with caplog.at_level("INFO", "octet.audit"):
        assert applied(rule) == Removal(count=1)
    assert numbers(catalog) == [1, 3]
    [line] = [vars(line) for line in caplog.records]
    told = [line[name] for name in ("action", "outcome", "key_name", "model", "version")]
    assert told == ["version.delete", "done", "sweep", "m", 2]


def test_engines_that_nobody_uses_leave_the_store_but_not_those_of_a_default(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    old = published(catalog, store, uploaded(catalog, store, "a"), engine=engine(store, "one"))
    default = published(catalog, store, uploaded(catalog, store, "b"), engine=engine(store, "two"))
    age_engines(catalog, DAY_S)
    assert StoredEngines(retention, keep_s=2 * DAY_S).due() == Removal()
    retention.note_use([], [(("m", old.number), "elsewhere")])
    rule = StoredEngines(retention, keep_s=3600.0)
    assert rule.due() == Removal(count=1)
    retention.note_use([], [(("m", old.number), "here")])
    assert rule.due() == Removal()
    rule = StoredEngines(retention, keep_s=-60.0)
    assert (rule.due(), applied(rule)) == (Removal(count=1), Removal(count=1))
    states = EngineStates(catalog)
    assert states.of("m", old.number) == []
    assert len(states.of("m", default.number)) == 1


def test_engines_of_deleted_versions_go_at_once(catalog: Catalog, store: BlobStore) -> None:
    status = engine(store, "one")
    published(catalog, store, uploaded(catalog, store, "a"), engine=status)
    sweep(catalog, store)
    assert there(store, status.files) == set(status.files)
    catalog.delete_model("m")
    sweep(catalog, store)
    assert there(store, status.files) == set()


def test_the_engine_of_a_version_that_was_deleted_while_it_compiled_goes(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    version = published(catalog, store, uploaded(catalog, store, "a"))
    catalog.delete_version("m", version.number)
    states, status = EngineStates(catalog), engine(store, "late")
    assert states.hold(version, "here", "server") is None
    assert StoredEngines(retention, keep_s=DAY_S).due() == Removal()
    states.settle(version, status, "server")
    assert applied(StoredEngines(retention, keep_s=DAY_S)) == Removal(count=1)
    sweep(catalog, store)
    assert there(store, status.files) == set()


def test_files_that_nothing_names_are_left_alone_while_they_are_young(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    unnamed, held = stored(store, "nobody's"), stored(store, "on its way")
    build = uploaded(catalog, store, "a")
    assert UnnamedBlobs(retention, store, keep_s=3600.0).due() == Removal()
    assert applied(UnnamedBlobs(retention, store, keep_s=3600.0)) == Removal()
    with Holds(catalog).hold([held]):
        rule = UnnamedBlobs(retention, store, keep_s=-60.0)
        assert rule.due() == Removal(count=1, size_bytes=len("nobody's"))
        assert applied(rule) == Removal(count=1, size_bytes=len("nobody's"))
    assert not store.has(unnamed)
    assert store.has(held)
    assert there(store, build.files) == set(build.files)


def test_a_file_that_is_sent_again_while_it_is_swept_is_there_afterwards(
    catalog: Catalog, store: BlobStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has seen that nothing names a file; before it removes it, an upload of the same bytes begins."""
    digest = stored(store, "samples again")
    deleting, go_on = threading.Event(), threading.Event()
    delete: Callable[[Any], None] = store.delete

    def slowly(digests: Any) -> None:
        deleting.set()
        go_on.wait(10)
        delete(digests)

    builds: list[Build] = []

    def upload() -> None:
        with Holds(catalog).hold([digest]):
            builds.append(uploaded(catalog, store, "b", sent="samples again"))

    monkeypatch.setattr(store, "delete", slowly)
    sweeping = threading.Thread(target=applied, args=(UnnamedBlobs(retention, store, keep_s=-60.0),))
    uploading = threading.Thread(target=upload)
    sweeping.start()
    assert deleting.wait(10)
    uploading.start()
    uploading.join(0.3)
    go_on.set()
    for thread in (sweeping, uploading):
        thread.join(10)
    assert there(store, builds[0].files) == {MODEL, SAMPLES}


def test_uploads_and_sweeps_that_race_lose_nothing(
    catalog: Catalog, store: BlobStore, retention: Retention
) -> None:
    """The same samples come and go while sweeps run: a build that goes on always has them."""
    stop, missing = threading.Event(), list[str]()

    def keep_sweeping() -> None:
        while not stop.is_set():
            applied(EndedSamples(retention, store))
            applied(UnnamedBlobs(retention, store, keep_s=-60.0))

    def keep_uploading(name: str) -> None:
        for number in range(8):
            with Holds(catalog).hold([named(f"model {name}{number}"), named("same")]):
                build = uploaded(catalog, store, f"{name}{number}", samples=Samples.DELETE, sent="same")
            missing.extend({MODEL, SAMPLES} - there(store, build.files))
            catalog.cancel(build.id)

    sweeper = threading.Thread(target=keep_sweeping)
    uploads = [threading.Thread(target=keep_uploading, args=(name,)) for name in "ab"]
    for thread in (sweeper, *uploads):
        thread.start()
    for thread in uploads:
        thread.join(60)
    stop.set()
    sweeper.join(60)
    assert not missing


def named(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_builds_at_once_are_few_enough_for_one_turn() -> None:
    assert AT_ONCE <= 100


def test_settings_reach_their_rules(catalog: Catalog, store: BlobStore) -> None:
    chosen = Settings(keep_versions=1)
    assert [type(rule) for rule in shared_rules(chosen, catalog, store)] == [
        EndedSamples,
        FruitlessBuilds,
        OldVersions,
        StoredEngines,
        UnnamedBlobs,
    ]
