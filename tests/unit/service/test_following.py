"""What a server reads of a catalog that it has read before, in each kind of database."""

from typing import Any

import pytest

from engines.options import BuildOptions
from service.catalog import rows
from service.catalog.catalog import Catalog, NewBuild, Version
from service.catalog.following import versions_beside
from service.catalog.schema import VersionRow


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions whose rows were read."""
    names: list[str] = []
    to_version = rows.to_version

    def noted(row: VersionRow, default: int | None) -> Version:
        names.append(f"{row.model}/{row.number}")
        return to_version(row, default)

    monkeypatch.setattr(rows, "to_version", noted)
    return names


def publish(catalog: Catalog, model: str, **options: Any) -> Version:
    new = NewBuild(model=model, fingerprint="f", options=BuildOptions(**options), files={})
    build, _ = catalog.accept(new, force=True)
    return catalog.publish(build.id, files={"prepared.onnx": f"sha256:{build.id}"}, summary={"sqnr_db": 40.0})


def shown(versions: list[Version]) -> list[tuple[str, int, bool]]:
    return [(version.model, version.number, version.default) for version in versions]


def test_what_is_known_is_not_read_again(any_catalog: Catalog, read: list[str]) -> None:
    for model in ("a", "b"):
        publish(any_catalog, model)
    known = versions_beside(any_catalog, [])
    assert known == any_catalog.versions()
    publish(any_catalog, "b")
    publish(any_catalog, "c")
    any_catalog.delete_model("a")
    read.clear()
    news = versions_beside(any_catalog, known)
    assert sorted(read) == ["b/2", "c/1"]
    assert shown(news) == [("b", 1, False), ("b", 2, True), ("c", 1, True)]
    assert news == any_catalog.versions()


def test_a_promotion_reads_no_version(any_catalog: Catalog, read: list[str]) -> None:
    for _ in range(3):
        publish(any_catalog, "a", promote=False)
    known = any_catalog.versions()
    any_catalog.set_default("a", 2)
    read.clear()
    assert shown(versions_beside(any_catalog, known)) == [("a", 1, False), ("a", 2, True), ("a", 3, False)]
    assert not read


def test_where_many_are_new_all_are_read_at_once(
    any_catalog: Catalog, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.catalog.following._MOST_NEWS", 1)
    first = publish(any_catalog, "a")
    for model in ("b", "c"):
        publish(any_catalog, model)
    read.clear()
    assert versions_beside(any_catalog, [first]) == any_catalog.versions()
    assert read[:3] == ["a/1", "b/1", "c/1"]
