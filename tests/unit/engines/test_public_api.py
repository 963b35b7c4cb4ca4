"""`import engines`: everything public is there, nothing native is loaded before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import engines

HEAVY = ("numpy", "onnx", "onnxruntime", "openvino", "numba", "pydantic")


def test_public_names_are_sorted_and_there() -> None:
    assert engines.__all__ == sorted(engines.__all__)
    assert set(engines.__all__) <= set(dir(engines))
    for name in engines.__all__:
        assert getattr(engines, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'engines' has no attribute 'quantise'"):
        engines.quantise  # noqa: B018 # that is the test


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import engines", ()),
        ("import engines.errors, engines.workspace", ()),
        ("from engines import BuildOptions", ("pydantic",)),
        ("from engines import Report", ("pydantic", "numpy")),
        ("import engines.runtimes.base", ("pydantic", "numpy")),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, allowed: tuple[str, ...]) -> None:
    script = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == str([name for name in HEAVY if name in allowed])


@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
def test_each_native_library_is_imported_by_one_module(library: str) -> None:
    root = Path(engines.__file__).parent
    importers = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        if any(
            line.split()[:2] in (["import", library], ["from", library])
            for line in path.read_text().splitlines()
            if line.split()[:1] in (["import"], ["from"])
        )
    ]
    expected = {"openvino": "runtimes/openvino.py", "onnxruntime": "runtimes/reference.py"}
    assert importers == [expected[library]]
