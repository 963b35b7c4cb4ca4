import logging
from pathlib import Path

import pytest

from service.retention.engine_uses import EngineUses


@pytest.fixture
def uses(tmp_path: Path) -> EngineUses:
    return EngineUses(tmp_path / "engine-uses.json", tmp_path / "engines")


def entry(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "engines" / "here" / f"{name}.engine"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"an engine")
    return path


def test_what_is_noted_is_read_by_another_process(uses: EngineUses, tmp_path: Path) -> None:
    one, two = entry(tmp_path, "one"), entry(tmp_path, "two")
    uses.note("b", [one, two])
    uses.note("a", [two])
    uses.note("a", [two])
    other = EngineUses(tmp_path / "engine-uses.json", tmp_path / "engines")
    assert other.read() == {"here/one.engine": ["b"], "here/two.engine": ["a", "b"]}
    assert other.of({"a"}) == [two]
    assert set(other.of({"b"})) == {one, two}
    assert other.of(set()) == []


def test_what_left_the_cache_is_forgotten(uses: EngineUses, tmp_path: Path) -> None:
    one, two = entry(tmp_path, "one"), entry(tmp_path, "two")
    uses.note("b", [one])
    one.unlink()
    uses.note("b", [two])
    assert uses.read() == {"here/two.engine": ["b"]}


@pytest.mark.parametrize("damaged", ["", "{", "[]", "[1]", '{"here/one.engine": 3}', "\x00"])
def test_a_damaged_file_is_none(uses: EngineUses, tmp_path: Path, damaged: str) -> None:
    (tmp_path / "engine-uses.json").write_text(damaged)
    assert uses.read() == {}
    one = entry(tmp_path, "one")
    uses.note("b", [one])
    assert uses.of({"b"}) == [one]


def test_a_file_that_cannot_be_written_only_costs_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uses = EngineUses(tmp_path / "missing" / "engine-uses.json", tmp_path / "engines")
    with caplog.at_level(logging.WARNING):
        uses.note("b", [entry(tmp_path, "one")])
    assert "engines of deleted versions stay longer" in caplog.text
