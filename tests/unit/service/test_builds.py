import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engines.options import BuildOptions
from engines.workspace import PREPARED, QUANTIZED, REPORT, UPLOADED_MODEL
from service.builds.leases import Leases
from service.builds.run import Builder, BuildRun
from service.builds.sandbox import Limits, Sandbox
from service.catalog.catalog import BuildState, Catalog, NewBuild, Version
from service.catalog.retention import Retention
from service.errors import CatalogUnavailableError, StorageFullError, StoreUnavailableError
from service.monitoring.spans import SpanWriter
from service.storage.blobs import address
from service.storage.folder_store import FolderStore


def stand_in_sandbox() -> Sandbox:
    return Sandbox(
        Limits(timeout_s=30, memory_bytes=1 << 30),
        environment=os.environ,
        module="tests.unit.service.stand_in_phases",
    )


class GaveWayError(Exception):
    """The process would have ended here."""


def give_way() -> NoReturn:
    raise GaveWayError


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield Builder(
        catalog=catalog,
        store=FolderStore(tmp_path / "store"),
        folder=tmp_path / "work",
        sandbox=stand_in_sandbox,
        give_way=give_way,
    )
    catalog.close()


def accept(builder: Builder, upload: str, **options: Any) -> str:
    with builder.store.writer() as writer:
        writer.write(upload.encode())
        digest = writer.commit()
    files = {UPLOADED_MODEL: digest, "upload/samples-000.npz": digest}
    new = NewBuild(model="m", fingerprint=upload, options=BuildOptions(**options), files=files)
    return builder.catalog.accept(new)[0].id


def carry_out(run: BuildRun) -> int | None:
    """What the workflow does, without its records."""
    plan = run.plan()
    if plan is None:
        return None
    files: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for number in range(len(plan)):
        outcome = run.phase(plan, number, files)
        if outcome is None:
            return None
        files |= outcome["files"]
        summary |= outcome["summary"]
    return run.publish(plan, files, summary)


def content(builder: Builder, digest: str) -> str:
    return b"".join(builder.store.read(digest)).decode()


def published(builder: Builder) -> list[Version]:
    return builder.catalog.versions()


def test_carries_a_build_out_and_publishes_what_serving_needs(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        assert carry_out(run) == 1
    build = builder.catalog.build(build_id)
    assert build.state is BuildState.SUCCEEDED
    assert (build.progress, build.version, build.error) == (1.0, 1, None)
    assert list(build.timings) == ["validate", "calibrate", "verify"]
    [version] = published(builder)
    assert sorted(version.files) == sorted([UPLOADED_MODEL, PREPARED, QUANTIZED, REPORT, "validated.json"])
    assert content(builder, version.files[QUANTIZED]) == "quantized model"
    assert version.summary["last"] == "verify"


def test_uses_one_child_for_all_phases_and_leaves_nothing_behind(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        carry_out(run)
    summary = published(builder)[0].summary
    assert summary["validate"] == summary["calibrate"] == summary["verify"]
    assert not list(builder.folder.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(summary["verify"], 0)


def test_goes_on_in_another_process_from_the_files_of_the_phases_before(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        plan = run.plan()
        assert plan is not None
        first = run.phase(plan, 0, {})
        assert first is not None
        second = run.phase(plan, 1, first["files"])
        assert second is not None
    with builder.run(build_id) as run:
        third = run.phase(plan, 2, first["files"] | second["files"])
        assert third is not None
    assert content(builder, third["files"][REPORT]) == '{"of": "quantized model"}'


def test_repeating_a_phase_and_publishing_changes_nothing(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        plan = run.plan()
        assert plan is not None
        first = run.phase(plan, 0, {})
    with builder.run(build_id) as run:
        assert first is not None
        again = run.phase(plan, 0, {})
        assert again is not None
        assert again["files"] == first["files"]
        assert run.publish(plan, first["files"], {}) == 1
        assert run.publish(plan, first["files"], {}) == 1
    assert len(published(builder)) == 1


def test_what_a_phase_wrote_is_held_until_it_is_named(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep may come at any time, also between the store and the catalog."""
    retention, seen = Retention(builder.catalog), list[bool]()
    adopt, finish = FolderStore.adopt, builder.catalog.finish_phase

    def adopt_watched(store: FolderStore, file: Path, digest: str) -> None:
        seen.append(digest in retention.kept())
        adopt(store, file, digest)

    def finish_watched(build_id: str, phase: str, **named: Any) -> bool:
        seen.append(set(named["files"].values()) <= retention.kept())
        return finish(build_id, phase, **named)

    build_id = accept(builder, "model")
    monkeypatch.setattr(FolderStore, "adopt", adopt_watched)
    monkeypatch.setattr(builder.catalog, "finish_phase", finish_watched)
    with builder.run(build_id) as run:
        carry_out(run)
    assert seen == [True] * 8
    assert retention.kept() <= set(builder.catalog.build(build_id).files.values())


def test_phases_are_spans_in_the_trace_that_has_the_build_s_id(builder: Builder) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced = replace(builder, spans=SpanWriter(provider))
    good, bad = accept(traced, "good"), accept(traced, "invalid in calibrate")
    for build_id in (good, bad):
        with traced.run(build_id) as run:
            carry_out(run)
    spans: dict[str, list[ReadableSpan]] = {good: [], bad: []}
    for span in exporter.get_finished_spans():
        assert span.context is not None
        spans[f"{span.context.trace_id:032x}"].append(span)
    assert [span.name for span in spans[good]] == [
        f"build {phase}" for phase in traced.catalog.build(good).timings
    ]
    assert dict(spans[good][0].attributes or {})["octet.build"] == good
    assert all(span.status.is_ok for span in spans[good])
    assert [span.status.is_ok for span in spans[bad]] == [True, False]


def test_an_invalid_upload_fails_with_its_sentence_and_code(builder: Builder) -> None:
    build_id = accept(builder, "invalid in calibrate")
    with builder.run(build_id) as run:
        assert carry_out(run) is None
    build = builder.catalog.build(build_id)
    assert build.state is BuildState.FAILED
    assert (build.error, build.code) == ("the upload is no ONNX model.", "model.invalid")
    assert build.phase == "calibrate"
    assert not published(builder)


def test_a_crash_that_does_not_come_again_is_survived(builder: Builder, tmp_path: Path) -> None:
    build_id = accept(builder, f"crash once in calibrate {tmp_path / 'crashed'}")
    with builder.run(build_id) as run:
        assert carry_out(run) == 1
    assert (tmp_path / "crashed").exists()


def test_a_crash_that_comes_again_fails_the_build(builder: Builder) -> None:
    build_id = accept(builder, "crash in verify")
    with builder.run(build_id) as run:
        assert carry_out(run) is None
    build = builder.catalog.build(build_id)
    assert build.state is BuildState.FAILED
    assert build.code == "build.crashed"
    assert build.error is not None
    assert build.error.startswith("the phase verify crashed inside a native library with SIGSEGV")


def test_cancelling_stops_native_work_within_two_seconds(builder: Builder) -> None:
    build_id = accept(builder, "hang in calibrate")
    cancelled_at: list[float] = []

    def cancel_once_it_hangs() -> None:
        while builder.catalog.build(build_id).phase != "calibrate":
            time.sleep(0.01)
        builder.catalog.cancel(build_id)
        cancelled_at.append(time.monotonic())

    thread = threading.Thread(target=cancel_once_it_hangs)
    thread.start()
    with builder.run(build_id) as run:
        assert carry_out(run) is None
        assert time.monotonic() - cancelled_at[0] < 2
        assert run.sandbox.pid is None
    thread.join()
    assert builder.catalog.build(build_id).state is BuildState.CANCELLED


def test_a_build_that_is_cancelled_and_forgotten_at_once_stops_as_well(builder: Builder) -> None:
    build_id = accept(builder, "hang in calibrate")

    def forget_once_it_hangs() -> None:
        while builder.catalog.build(build_id).phase != "calibrate":
            time.sleep(0.01)
        builder.catalog.cancel(build_id)
        Retention(builder.catalog).forget(build_id, lambda _: None)

    thread = threading.Thread(target=forget_once_it_hangs)
    thread.start()
    with builder.run(build_id) as run:
        assert carry_out(run) is None
        assert run.sandbox.pid is None
    thread.join()
    with builder.run(build_id) as run:
        assert carry_out(run) is None


def test_a_cancelled_build_is_not_begun(builder: Builder) -> None:
    build_id = accept(builder, "model")
    builder.catalog.cancel(build_id)
    with builder.run(build_id) as run:
        assert run.plan() is None
        assert run.phase([{"name": "validate", "outputs": []}], 0, {}) is None
        assert not builder.folder.exists(), "nothing was prepared for it"
        assert run.sandbox.pid is None
    assert not published(builder)


def test_a_build_cancelled_before_publishing_is_not_published(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        plan = run.plan()
        assert plan is not None
        builder.catalog.cancel(build_id)
        assert run.publish(plan, {}, {}) is None
    assert not published(builder)


def test_progress_rises_through_the_phases(builder: Builder) -> None:
    build_id = accept(builder, "model")
    seen = []
    with builder.run(build_id) as run:
        plan = run.plan()
        assert plan is not None
        files: dict[str, str] = {}
        for number in range(len(plan)):
            outcome = run.phase(plan, number, files)
            assert outcome is not None
            files |= outcome["files"]
            seen.append(builder.catalog.build(build_id).progress)
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] < 1


def test_a_blob_that_changed_on_the_disk_fails_the_build(builder: Builder) -> None:
    build_id = accept(builder, "model")
    digest = builder.catalog.build(build_id).files[UPLOADED_MODEL]
    (builder.folder.parent / "store" / address(digest)).write_text("other")
    with builder.run(build_id) as run:
        assert carry_out(run) is None
    assert builder.catalog.build(build_id).code == "artifact.invalid"


def claimed(builder: Builder, build_id: str, worker: str = "w") -> int:
    claim = Leases(builder.catalog, worker=worker, hardware="h").claim(build_id, build_id)
    assert claim is not None
    return claim


def test_a_run_whose_build_was_claimed_by_another_gives_way_and_writes_nothing(builder: Builder) -> None:
    build_id = accept(builder, "model")
    with builder.run(build_id, claimed(builder, build_id)) as run:
        plan = run.plan()
        assert plan is not None
        first = run.phase(plan, 0, {})
        assert first is not None
        claimed(builder, build_id, "other")
        before = builder.catalog.build(build_id)
        with pytest.raises(GaveWayError):
            run.phase(plan, 1, first["files"])
        with pytest.raises(GaveWayError):
            run.publish(plan, {}, {})
        assert builder.catalog.build(build_id) == before
    assert not published(builder)


def test_a_run_gives_way_in_the_middle_of_native_work(builder: Builder) -> None:
    build_id = accept(builder, "hang in calibrate")

    def claim_once_it_hangs() -> None:
        while builder.catalog.build(build_id).phase != "calibrate":
            time.sleep(0.01)
        claimed(builder, build_id, "other")

    thread = threading.Thread(target=claim_once_it_hangs)
    with builder.run(build_id, claimed(builder, build_id)) as run:
        thread.start()
        with pytest.raises(GaveWayError):
            carry_out(run)
    thread.join()
    assert builder.catalog.build(build_id).state is BuildState.RUNNING


def test_a_database_and_a_store_that_are_away_are_waited_for(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.builds.patience._FIRST_PAUSE_S", 0.001)
    build_id = accept(builder, "model")
    for owner, name, error in (
        (builder.store, "put", StoreUnavailableError),
        (builder.store, "materialise", StoreUnavailableError),
        (builder.catalog, "note_progress", CatalogUnavailableError),
        (builder.catalog, "begin_phase", CatalogUnavailableError),
        (builder.catalog, "finish_phase", CatalogUnavailableError),
        (builder.catalog, "publish", CatalogUnavailableError),
    ):
        monkeypatch.setattr(owner, name, every_other_time(getattr(owner, name), error("away.")))
    with builder.run(build_id) as run:
        assert carry_out(run) == 1
    assert builder.catalog.build(build_id).state is BuildState.SUCCEEDED


def every_other_time(work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    calls = itertools.count()

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) % 2 == 0:
            raise error
        return work(*arguments, **named)

    return call


@pytest.fixture
def full(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Has the store be full so many times from now on; gives the blobs that it refused."""
    monkeypatch.setattr("service.builds.run.FULL_PAUSE_S", 0.01)
    put, refused = FolderStore.put, list[str]()

    def be_full(times: int) -> list[str]:
        def put_or_refuse(store: FolderStore, path: Path) -> str:
            if len(refused) < times:
                refused.append(path.name)
                raise StorageFullError("no room is left on the disk; free some space there and try again.")
            return put(store, path)

        monkeypatch.setattr(FolderStore, "put", put_or_refuse)
        return refused

    return be_full


def test_a_build_waits_while_the_store_is_full(builder: Builder, full: Callable[[int], list[str]]) -> None:
    build_id = accept(builder, "model")
    refused = full(3)
    with builder.run(build_id) as run:
        assert carry_out(run) == 1
    assert len(refused) == 3
    assert builder.catalog.build(build_id).state is BuildState.SUCCEEDED


def test_a_build_that_waits_for_room_takes_none(
    builder: Builder, full: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []
    monkeypatch.setattr(time, "sleep", lambda _: seen.append(list(builder.folder.iterdir())))
    build_id = accept(builder, "model")
    full(1)
    with builder.run(build_id) as run:
        carry_out(run)
    assert seen == [[]]


def test_a_build_that_lacks_room_for_long_fails_and_says_so(
    builder: Builder, full: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.builds.run.FULL_S", 0.1)
    build_id = accept(builder, "model")
    refused = full(1 << 30)
    with builder.run(build_id) as run:
        assert carry_out(run) is None
    build = builder.catalog.build(build_id)
    assert (build.state, build.code) == (BuildState.FAILED, "storage.full")
    assert build.error == "no room is left on the disk; free some space there and try again."
    assert len(refused) > 1


def test_a_build_that_waits_for_room_can_be_cancelled(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.builds.run.FULL_PAUSE_S", 0.01)
    refused: list[object] = []

    def refuse(_: FolderStore, files: object, __: Path) -> None:
        refused.append(files)
        raise StorageFullError("no room is left on the disk; free some space there and try again.")

    # Not even its files are there, so that no native work could find out.
    monkeypatch.setattr(FolderStore, "materialise", refuse)
    build_id = accept(builder, "model")

    def cancel() -> None:
        while not refused:
            time.sleep(0.01)
        builder.catalog.cancel(build_id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with builder.run(build_id) as run:
        assert carry_out(run) is None
    thread.join()
    assert builder.catalog.build(build_id).state is BuildState.CANCELLED


def test_a_database_without_room_is_waited_for_since_not_even_a_failure_could_be_noted(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.builds.patience._FIRST_PAUSE_S", 0.001)
    begin, refused = builder.catalog.begin_phase, list[str]()

    def begin_or_refuse(build_id: str, phase: str, progress: float, **claim: Any) -> bool:
        if len(refused) % 3 < 2:
            refused.append(phase)
            raise StorageFullError("the database has no room left; free some space and try again.")
        refused.append("done")
        return begin(build_id, phase, progress, **claim)

    monkeypatch.setattr(builder.catalog, "begin_phase", begin_or_refuse)
    build_id = accept(builder, "model")
    with builder.run(build_id) as run:
        assert carry_out(run) == 1
    assert refused.count("done") == 4
