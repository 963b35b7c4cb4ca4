from dataclasses import replace
from pathlib import Path

import pytest

from engines.options import BuildOptions
from engines.runtimes.fit import Fit
from service.catalog.catalog import Version
from service.serving.rehearsals import Rehearsals, rehearsal_name

VERSION = Version(
    model="m",
    number=1,
    build_id="b",
    files={"quantized.onnx": "sha256:1"},
    options=BuildOptions(),
    summary={},
    created_at=0.0,
    default=True,
)
NAME = rehearsal_name(VERSION, hardware_key="avx2", threads=2, lanes=1)
FIT = Fit(threads=1, gains={1: 1.5, 32: 1.1})


def test_what_went_well_is_known_to_later_servers(tmp_path: Path) -> None:
    path = tmp_path / "rehearsals.json"
    rehearsals = Rehearsals(path)
    assert rehearsals.fit(NAME) is None
    rehearsals.add(NAME, FIT)
    assert rehearsals.fit(NAME) == FIT
    assert Rehearsals(path).fit(NAME) == FIT
    assert Rehearsals(path).fit("another") is None


def test_a_rehearsal_holds_for_the_same_files_options_and_hardware_alone() -> None:
    other_files = replace(VERSION, files={"quantized.onnx": "sha256:2"})
    other_build = replace(VERSION, build_id="c")
    other_options = replace(VERSION, options=BuildOptions(promote=False))
    names = [
        rehearsal_name(v, hardware_key="avx2", threads=2, lanes=1)
        for v in (other_files, other_build, other_options)
    ]
    names.append(rehearsal_name(VERSION, hardware_key="vnni", threads=2, lanes=1))
    names.append(rehearsal_name(VERSION, hardware_key="avx2", threads=1, lanes=1))
    names.append(rehearsal_name(VERSION, hardware_key="avx2", threads=2, lanes=2))
    assert len({NAME, *names}) == 7
    # Whether it is the default makes no difference.
    assert rehearsal_name(replace(VERSION, default=False), hardware_key="avx2", threads=2, lanes=1) == NAME


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    rehearsals = Rehearsals(tmp_path / "rehearsals.json")
    for number in range(1001):
        rehearsals.add(str(number), FIT)
    later = Rehearsals(tmp_path / "rehearsals.json")
    assert (later.fit("0"), later.fit("1"), later.fit("1000")) == (None, FIT, FIT)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"1", b"\xff", b"[1]", b'["%b"]', b'{"%b": {"threads": 0, "gains": {}}}']
)
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rehearsals.json"
    path.write_bytes(content.replace(b"%b", NAME.encode()))
    assert Rehearsals(path).fit(NAME) is None


def test_a_folder_that_cannot_be_written_to_only_costs_time(tmp_path: Path) -> None:
    rehearsals = Rehearsals(tmp_path / "gone" / "rehearsals.json")
    rehearsals.add(NAME, FIT)
    assert rehearsals.fit(NAME) == FIT
