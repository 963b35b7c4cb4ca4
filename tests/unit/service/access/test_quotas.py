import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from engines.errors import InvalidArtifactError
from engines.options import BuildOptions
from service.access.caller import LOCAL, Caller
from service.access.keys import Quotas
from service.access.quotas import UploadQuota
from service.access.scopes import Scope
from service.catalog.catalog import Build, Catalog, NewBuild
from service.catalog.retention import DueSamples, Retention
from service.errors import BuildQuotaError, BytesQuotaError

SIZES = {"a": 1000, "b": 2000, "c": 4000, "written": 500}


def size_bytes(digest: str) -> int:
    if digest not in SIZES:
        raise InvalidArtifactError("gone.")
    return SIZES[digest]


def caller(key_id: str = "k1", **quotas: int) -> Caller:
    return Caller(key_id=key_id, name="ci", scopes=frozenset({Scope.BUILD}), quotas=Quotas(**quotas))


def upload(catalog: Catalog, who: Caller, *digests: str, fingerprint: str = "f") -> Build:
    """Records a build of these files as the routes do."""
    files = {f"upload/{digest}": digest for digest in digests}
    new = NewBuild(model="m", fingerprint=fingerprint, options=BuildOptions(), files=files, key_id=who.key_id)
    quota = UploadQuota(who, {digest: SIZES.get(digest, 0) for digest in digests}, size_bytes)
    quota.prepare(catalog)
    build, _ = catalog.accept(new, force=fingerprint == "f", check=quota.check)
    return build


def test_builds_that_go_on_are_counted_by_key(catalog: Catalog) -> None:
    who = caller(max_builds=2)
    first = upload(catalog, who, "a")
    catalog.begin_phase(upload(catalog, who, "a").id, "validate", 0.1)
    with pytest.raises(
        BuildQuotaError, match=r"key k1 \(ci\) has 2 builds queued or running and may have 2; wait"
    ):
        upload(catalog, who, "a")
    upload(catalog, caller("k2", max_builds=1), "a")
    upload(catalog, LOCAL, "a")
    catalog.cancel(first.id)
    upload(catalog, who, "a")
    assert len(catalog.builds()) == 5


def test_who_lost_an_answer_gets_the_build_again_though_no_more_may_go_on(catalog: Catalog) -> None:
    who = caller(max_builds=1, max_bytes=1000)
    accepted = upload(catalog, who, "a", fingerprint="same")
    assert upload(catalog, who, "a", fingerprint="same") == accepted


def test_files_are_counted_once_and_only_while_they_are_kept(catalog: Catalog) -> None:
    who = caller(max_bytes=3500)
    first = upload(catalog, who, "a", "b")
    second = upload(catalog, who, "a", "b")
    with pytest.raises(
        BytesQuotaError, match=r"of key k1 \(ci\) would take 7.0KB and may take 3.5KB; delete"
    ):
        upload(catalog, who, "c")
    for other in (LOCAL, caller("k2")):
        catalog.publish(upload(catalog, other, "c").id, files={"prepared.onnx": "c"}, summary={})
    catalog.publish(first.id, files={"quantized.onnx": "written", "prepared.onnx": "a"}, summary={})
    catalog.cancel(second.id)
    # The version, and two uploads of the same files: 3.5 KB.
    upload(catalog, who, "b")
    with pytest.raises(BytesQuotaError, match=r"would take 7.5KB"):
        upload(catalog, who, "c")
    catalog.delete_model("m")
    with pytest.raises(BytesQuotaError, match=r"would take 7.0KB"):
        upload(catalog, who, "c")
    Retention(catalog).forget(second.id, lambda _: None)
    upload(catalog, caller(max_bytes=2000), "b")


def test_an_upload_that_failed_counts_until_it_is_forgotten(catalog: Catalog) -> None:
    who = caller(max_bytes=2500)
    failed = upload(catalog, who, "a")
    catalog.fail(failed.id, error="no model.", code="model.invalid")
    with pytest.raises(BytesQuotaError, match=r"would take 3.0KB .*forget failed builds"):
        upload(catalog, who, "b")
    Retention(catalog).forget(failed.id, lambda _: None)
    upload(catalog, who, "b")


def test_samples_count_until_they_are_removed(catalog: Catalog) -> None:
    who = caller(max_bytes=4500)
    files = {"upload/samples-000.npz": "b", "upload/model.onnx": "a"}
    new = NewBuild(model="m", fingerprint="f", options=BuildOptions(), files=files, key_id=who.key_id)
    build, _ = catalog.accept(new, force=True)
    catalog.publish(build.id, files={"quantized.onnx": "written"}, summary={})
    with pytest.raises(BytesQuotaError, match=r"would take 7.5KB"):
        upload(catalog, who, "c")
    due = DueSamples(ended_before=time.time() + 1)
    Retention(catalog).remove_samples(due, lambda _: None)
    with pytest.raises(BytesQuotaError, match=r"would take 5.5KB"):
        upload(catalog, who, "c")


def test_exactly_as_much_as_allowed_is_allowed(catalog: Catalog) -> None:
    upload(catalog, caller(max_bytes=3000), "a", "b")


def test_a_lost_file_takes_no_room(catalog: Catalog) -> None:
    who = caller(max_bytes=1000)
    catalog.publish(upload(catalog, who, "a").id, files={"quantized.onnx": "lost"}, summary={})
    upload(catalog, who, "a")


def test_the_store_is_asked_for_sizes_before_others_have_to_wait(catalog: Catalog) -> None:
    who, asked = caller(max_bytes=10_000), set[str]()

    def ask(digest: str) -> int:
        asked.add(digest)
        return SIZES[digest]

    upload(catalog, who, "a", "b")
    UploadQuota(who, {"c": SIZES["c"]}, ask).prepare(catalog)
    assert asked == {"a", "b"}


def test_without_quotas_nothing_is_asked(catalog: Catalog) -> None:
    quota = UploadQuota(caller(), {"a": 1}, lambda _: pytest.fail("the store was asked"))
    quota.prepare(catalog)
    with catalog.look() as session:
        statements: list[str] = []
        sa.event.listen(session.get_bind(), "before_cursor_execute", lambda *said: statements.append(said[2]))
        quota.check(session)
    assert statements == []


def test_a_refused_build_leaves_no_trace(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(BytesQuotaError):
        upload(catalog, caller(max_bytes=1), "a")
    assert catalog.builds() == []
