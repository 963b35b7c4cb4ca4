from collections.abc import Iterator
from pathlib import Path

import pytest

from service.builds.acceptance import accept, new_build
from service.builds.upload_options import UploadOptions
from service.builds.uploads import UploadReader
from service.catalog.catalog import Build, Catalog
from service.catalog.records import Samples
from service.catalog.retention import Retention
from service.storage.folder_store import FolderStore
from tests.unit.service.test_uploads import MODEL, SAMPLES, multipart


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def lets_go_of_everything(catalog: Catalog) -> Iterator[None]:
    yield
    for build in catalog.builds():
        catalog.cancel(build.id) if not build.state.ended else None
    assert not Retention(catalog).kept() - {
        digest for build in catalog.builds() for digest in build.files.values()
    }


def post(
    catalog: Catalog, store: FolderStore, *, samples: str = "keep", force: bool = False
) -> tuple[Build, bool]:
    body = multipart(MODEL, SAMPLES, ("options", None, f'{{"samples": "{samples}"}}'.encode()))
    with UploadReader(store, content_type="multipart/form-data; boundary=cut", max_bytes=1 << 20) as reader:
        reader.write(body)
        return accept(catalog, reader, new_build("m", reader.finish()), force=force)


def test_a_new_upload_is_stored_and_recorded(catalog: Catalog, store: FolderStore) -> None:
    build, is_new = post(catalog, store, samples="delete")
    assert is_new
    assert build.samples is Samples.DELETE
    assert all(store.has(digest) for digest in build.files.values())


def test_an_equal_upload_of_what_is_done_is_not_stored_again(catalog: Catalog, store: FolderStore) -> None:
    build, _ = post(catalog, store, samples="delete")
    catalog.publish(build.id, files={}, summary={})
    store.delete(list(build.files.values()))
    again, is_new = post(catalog, store, samples="delete")
    assert (again.id, is_new) == (build.id, False)
    assert not list(store.digests(older_than_s=-60))


def test_a_forced_one_is_stored_and_built_again(catalog: Catalog, store: FolderStore) -> None:
    build, _ = post(catalog, store)
    catalog.publish(build.id, files={}, summary={})
    store.delete(list(build.files.values()))
    again, is_new = post(catalog, store, force=True)
    assert is_new
    assert again.id != build.id
    assert all(store.has(digest) for digest in again.files.values())


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ("keep", "delete", Samples.DELETE),
        ("delete", "keep", Samples.DELETE),
        ("keep", "keep", Samples.KEEP),
    ],
)
def test_of_two_wishes_about_the_same_samples_that_to_delete_them_counts(
    catalog: Catalog, store: FolderStore, first: str, then: str, expected: Samples
) -> None:
    build, _ = post(catalog, store, samples=first)
    again, is_new = post(catalog, store, samples=then)
    assert (again.id, is_new, again.samples) == (build.id, False, expected)
    assert catalog.build(build.id).samples is expected


def test_the_blobs_are_held_from_before_they_are_stored_until_they_are_named(
    catalog: Catalog, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt, seen = store.adopt, list[bool]()

    def watched(file: Path, digest: str) -> None:
        seen.append(digest in Retention(catalog).kept())
        adopt(file, digest)

    monkeypatch.setattr(store, "adopt", watched)
    post(catalog, store)
    assert seen == [True, True]


def test_options_of_the_build_do_not_know_the_wish(catalog: Catalog, store: FolderStore) -> None:
    build, _ = post(catalog, store, samples="delete")
    assert build.options == UploadOptions().build
