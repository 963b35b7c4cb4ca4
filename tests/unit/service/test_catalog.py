import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.options import BuildOptions
from service.catalog.catalog import BuildState, Catalog, NewBuild, Version
from service.catalog.retention import Retention
from service.errors import CancelledBuildError, ConflictError, NotFoundError
from tests.databases import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_catalog()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    opened = Catalog(url)
    yield opened
    opened.close()


def new(model: str = "m", fingerprint: str = "f", **options: Any) -> NewBuild:
    return NewBuild(
        model=model,
        fingerprint=fingerprint,
        options=BuildOptions(**options),
        files={"upload/model.onnx": "sha256:a"},
    )


def publish(catalog: Catalog, model: str = "m", **options: Any) -> Version:
    build, _ = catalog.accept(new(model, **options), force=True)
    return catalog.publish(build.id, files={"prepared.onnx": f"sha256:{build.id}"}, summary={"sqnr_db": 40.0})


def test_an_accepted_build_is_queued_and_found_again(catalog: Catalog) -> None:
    build, is_new = catalog.accept(new(precision="fp32"))
    assert is_new
    assert build.state is BuildState.QUEUED
    assert catalog.build(build.id) == build
    assert build.options.precision == "fp32"
    assert (build.progress, build.phase, build.version, build.error) == (0.0, None, None, None)


def test_another_process_sees_what_was_committed(url: str, catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    other = Catalog(url)
    assert other.build(build.id) == build
    other.close()


def test_an_equal_upload_gets_the_build_that_goes_on(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    assert catalog.accept(new()) == (build, False)
    catalog.begin_phase(build.id, "validate", 0.0)
    again, is_new = catalog.accept(new())
    assert (again.id, is_new) == (build.id, False)
    assert catalog.accept(new(fingerprint="other"))[1]


def test_an_equal_upload_gets_the_build_that_was_published(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    catalog.publish(build.id, files={}, summary={})
    again, is_new = catalog.accept(new())
    assert (again.id, again.state, is_new) == (build.id, BuildState.SUCCEEDED, False)


def test_a_recent_answer_about_the_revision_is_told_again_to_who_takes_it(catalog: Catalog, url: str) -> None:
    before = catalog.revision()
    other = Catalog(url)
    publish(other)
    other.close()
    assert catalog.revision(within_s=60.0) == before
    assert catalog.revision() != before
    assert catalog.revision(within_s=60.0) == catalog.revision()


def test_force_builds_again(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    again, is_new = catalog.accept(new(), force=True)
    assert is_new
    assert again.id != build.id


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
def test_a_build_without_a_version_is_not_used_again(catalog: Catalog, how: str) -> None:
    build, _ = catalog.accept(new())
    if how == "failed":
        catalog.fail(build.id, error="no.", code="model.invalid")
    elif how == "cancelled":
        catalog.cancel(build.id)
    else:
        catalog.publish(build.id, files={}, summary={})
        catalog.delete_version("m", 1)
    assert catalog.accept(new())[1]


def test_equal_uploads_at_the_same_time_become_one_build(url: str, catalog: Catalog) -> None:
    barrier = threading.Barrier(8)
    ids: list[tuple[str, bool]] = []

    def upload() -> None:
        barrier.wait()
        build, is_new = catalog.accept(new())
        ids.append((build.id, is_new))

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({build_id for build_id, _ in ids}) == 1
    assert sum(is_new for _, is_new in ids) == 1


def test_phases_are_noted(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    assert catalog.begin_phase(build.id, "validate", 0.1)
    started = catalog.build(build.id)
    assert (started.state, started.phase, started.progress) == (BuildState.RUNNING, "validate", 0.1)
    assert started.started_at is not None
    assert catalog.note_progress(build.id, 0.2)
    assert catalog.finish_phase(build.id, "validate", seconds=1.5, files={"validated.json": "sha256:v"})
    assert catalog.begin_phase(build.id, "calibrate", 0.3)
    assert catalog.finish_phase(build.id, "calibrate", seconds=2.5, files={"calibration.json": "sha256:c"})
    later = catalog.build(build.id)
    assert later.started_at == started.started_at
    assert later.timings == {"validate": 1.5, "calibrate": 2.5}
    assert set(later.files) == {"upload/model.onnx", "validated.json", "calibration.json"}


def test_an_ended_build_takes_no_more_notes(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    ended = catalog.cancel(build.id)
    assert not catalog.begin_phase(build.id, "validate", 0.1)
    assert not catalog.note_progress(build.id, 0.5)
    assert not catalog.finish_phase(build.id, "validate", seconds=1, files={"x": "sha256:x"})
    assert not catalog.fail(build.id, error="late.", code="late")
    assert catalog.build(build.id) == ended


def test_a_failure_keeps_its_sentence_and_code(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    assert catalog.fail(build.id, error="the model is broken.", code="model.invalid")
    failed = catalog.build(build.id)
    assert (failed.state, failed.error, failed.code) == (
        BuildState.FAILED,
        "the model is broken.",
        "model.invalid",
    )
    assert failed.finished_at is not None


def test_cancelling_twice_is_cancelling_once(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    assert catalog.cancel(build.id) == catalog.cancel(build.id)


@pytest.mark.parametrize(
    ("how", "remedy"), [("succeeded", "delete the version"), ("failed", "nothing is left")]
)
def test_an_ended_build_cannot_be_cancelled(catalog: Catalog, how: str, remedy: str) -> None:
    build, _ = catalog.accept(new())
    if how == "succeeded":
        catalog.publish(build.id, files={}, summary={})
    else:
        catalog.fail(build.id, error="no.", code="x")
    with pytest.raises(ConflictError, match=rf"has {how} already and cannot be cancelled; {remedy}"):
        catalog.cancel(build.id)


@pytest.mark.parametrize("how", ["failed", "cancelled", "its version was deleted"])
def test_an_ended_build_without_a_version_can_be_forgotten(catalog: Catalog, how: str) -> None:
    build, _ = catalog.accept(new())
    if how == "failed":
        catalog.fail(build.id, error="no.", code="x")
    elif how == "cancelled":
        catalog.cancel(build.id)
    else:
        catalog.publish(build.id, files={}, summary={})
        catalog.delete_model("m")
    assert Retention(catalog).forget(build.id, lambda _: None).id == build.id
    assert catalog.builds() == []
    with pytest.raises(NotFoundError):
        Retention(catalog).forget(build.id, lambda _: None)


def test_a_build_that_is_needed_cannot_be_forgotten(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    with pytest.raises(ConflictError, match="is queued and cannot be forgotten; cancel it first"):
        Retention(catalog).forget(build.id, lambda _: None)
    catalog.publish(build.id, files={}, summary={})
    with pytest.raises(ConflictError, match=r"made version 1 of model 'm' .* delete the version first"):
        Retention(catalog).forget(build.id, lambda _: None)
    assert [known.id for known in catalog.builds()] == [build.id]


def test_publishing_is_one_change(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    before = catalog.revision()
    version = catalog.publish(build.id, files={"prepared.onnx": "sha256:p"}, summary={"sqnr_db": 41.5})
    assert (version.model, version.number, version.build_id, version.default) == ("m", 1, build.id, True)
    assert (version.files, version.summary) == ({"prepared.onnx": "sha256:p"}, {"sqnr_db": 41.5})
    assert catalog.versions() == [version] == [catalog.version("m", 1)]
    assert catalog.revision() == before + 1
    ended = catalog.build(build.id)
    assert (ended.state, ended.version, ended.progress) == (BuildState.SUCCEEDED, 1, 1.0)


def test_publishing_again_returns_the_same_version(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    first = catalog.publish(build.id, files={}, summary={})
    revision = catalog.revision()
    assert catalog.publish(build.id, files={"other": "sha256:o"}, summary={}) == first
    assert catalog.revision() == revision


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_an_ended_build_is_not_published(catalog: Catalog, how: str) -> None:
    build, _ = catalog.accept(new())
    catalog.cancel(build.id) if how == "cancelled" else catalog.fail(build.id, error="no.", code="x")
    with pytest.raises(CancelledBuildError, match=how):
        catalog.publish(build.id, files={}, summary={})
    assert not catalog.versions()


def test_promotion_decides_which_version_is_the_default(catalog: Catalog) -> None:
    assert publish(catalog, promote=False).default, "the first version always answers"
    assert publish(catalog).default
    assert not publish(catalog, promote=False).default
    assert [version.default for version in catalog.versions("m")] == [False, True, False]


def test_the_default_can_be_moved_and_the_revision_tells(catalog: Catalog) -> None:
    publish(catalog)
    publish(catalog)
    before = catalog.revision()
    assert catalog.set_default("m", 1).default
    assert catalog.revision() == before + 1
    catalog.set_default("m", 1)
    assert catalog.revision() == before + 1, "nothing changed"
    assert [version.default for version in catalog.versions("m")] == [True, False]


def test_numbers_are_never_used_twice(catalog: Catalog) -> None:
    publish(catalog)
    publish(catalog)
    catalog.set_default("m", 1)
    catalog.delete_version("m", 2)
    assert publish(catalog).number == 3
    catalog.delete_model("m")
    assert publish(catalog).number == 4


def test_the_default_is_not_deleted_while_others_could_answer(catalog: Catalog) -> None:
    publish(catalog)
    publish(catalog)
    with pytest.raises(
        ConflictError, match=r"version 2 is the default .*make another one the default first \(1\)"
    ):
        catalog.delete_version("m", 2)
    before = catalog.revision()
    catalog.delete_version("m", 1)
    catalog.delete_version("m", 2)
    assert catalog.revision() == before + 2
    assert not catalog.versions("m")


def test_deleting_a_model_cancels_its_unfinished_builds_and_leaves_others(catalog: Catalog) -> None:
    publish(catalog)
    other = publish(catalog, "other")
    going_on, _ = catalog.accept(new(fingerprint="g"))
    before = catalog.revision()
    catalog.delete_model("m")
    assert catalog.versions() == [other]
    assert catalog.build(going_on.id).state is BuildState.CANCELLED
    assert catalog.revision() == before + 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda catalog: catalog.build("b"), "there is no build 'b'; GET /v1/builds lists them."),
        (lambda catalog: catalog.cancel("b"), "there is no build 'b'; GET /v1/builds lists them."),
        (
            lambda catalog: catalog.publish("b", files={}, summary={}),
            "there is no build 'b'; GET /v1/builds lists them.",
        ),
        (lambda catalog: catalog.version("x", 1), "there is no model 'x'; GET /v1/models lists them."),
        (lambda catalog: catalog.delete_model("x"), "there is no model 'x'; GET /v1/models lists them."),
        (lambda catalog: catalog.version("m", 7), "model 'm' has no version 7; there is 1."),
        (lambda catalog: catalog.set_default("m", 7), "model 'm' has no version 7; there is 1."),
        (lambda catalog: catalog.delete_version("m", 7), "model 'm' has no version 7; there is 1."),
    ],
)
def test_what_is_not_there_is_named(catalog: Catalog, call: Any, sentence: str) -> None:
    publish(catalog)
    with pytest.raises(NotFoundError) as caught:
        call(catalog)
    assert str(caught.value) == sentence


def test_only_what_versions_and_unfinished_builds_need_is_kept(catalog: Catalog) -> None:
    version = publish(catalog)
    going_on, _ = catalog.accept(new(fingerprint="g"))
    catalog.finish_phase(going_on.id, "validate", seconds=1, files={"validated.json": "sha256:v"})
    failed, _ = catalog.accept(new(fingerprint="h"))
    catalog.finish_phase(failed.id, "validate", seconds=1, files={"validated.json": "sha256:w"})
    catalog.fail(failed.id, error="no.", code="x")
    assert catalog.digests() == {"sha256:a", "sha256:v", *version.files.values()}


def test_builds_are_listed_newest_first(catalog: Catalog) -> None:
    ids = [catalog.accept(new(fingerprint=str(number)))[0].id for number in range(3)]
    catalog.cancel(ids[1])
    assert [build.id for build in catalog.builds()] == ids[::-1]
    assert [build.id for build in catalog.builds(limit=1)] == ids[2:]
    assert [build.id for build in catalog.builds(states=(BuildState.CANCELLED,))] == [ids[1]]


def test_processes_may_create_the_catalog_at_the_same_time(url: str) -> None:
    barrier = threading.Barrier(8)
    created: list[str] = []

    def create() -> None:
        barrier.wait()
        Catalog(url).close()
        created.append(url)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 8


def test_values_are_frozen(catalog: Catalog) -> None:
    build, _ = catalog.accept(new())
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataclasses.replace(build).__setattr__("state", BuildState.FAILED)
