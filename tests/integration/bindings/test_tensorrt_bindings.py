"""Our code and the fakes, held against NVIDIA's own bindings: every name, property, enum member and argument."""

import ast
import enum
import inspect
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import installed
from tests.integration.bindings.fetched import CUDA_BINDINGS, PYCUDA, VERSIONS, tensorrt_listing
from tests.integration.bindings.stubs import split_arguments, stub

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "engines" / "runtimes" / "tensorrt"
CONFIGURATION = """\
[mypy]
strict = true
follow_imports = skip
ignore_missing_imports = true
disallow_any_unimported = false
disallow_subclassing_any = false
disallow_untyped_decorators = false
warn_return_any = false
warn_unused_ignores = false

[mypy-tensorrt]
follow_imports = silent
ignore_errors = true
"""
MYPY = (sys.executable, "-m", "mypy", "--explicit-package-bases")
Misspelt = tuple[str, int, str]
"""File, line and name."""


@pytest.fixture(scope="module", params=VERSIONS)
def listing(request: pytest.FixtureRequest) -> dict[str, Any]:
    return tensorrt_listing(request.param)


@pytest.fixture(scope="module")
def checker(listing: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> "Checker":
    return Checker(listing, tmp_path_factory.mktemp("checked"))


def test_the_extra_asks_for_the_versions_that_are_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = dict(entry.split(">=") for entry in extras["optional-dependencies"]["tensorrt"])
    assert VERSIONS[0].startswith(f"{least['tensorrt']}.")
    assert CUDA_BINDINGS.startswith(least["cuda-bindings"])
    assert least["pycuda"] == PYCUDA


class Checker:
    """mypy on our code, with NVIDIA's bindings as what `tensorrt` is."""

    def __init__(self, listing: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        (folder / "stubs").mkdir()
        (folder / "stubs" / "tensorrt.pyi").write_text(stub(listing))
        (folder / "mypy.ini").write_text(CONFIGURATION)

    def complaints(self, sources: dict[str, str]) -> list[str]:
        package = self.folder / "code" / "engines" / "runtimes" / "tensorrt"
        package.mkdir(parents=True, exist_ok=True)
        for parent in (package.parent, package.parent.parent):
            (parent / "__init__.py").touch()
        for name, source in sources.items():
            (package / name).write_text(source)
        done = subprocess.run(
            [
                *MYPY,
                "--config-file",
                self.folder / "mypy.ini",
                "--cache-dir",
                self.folder / "cache",
                "engines",
            ],
            cwd=self.folder / "code",
            env={"MYPYPATH": f"{self.folder / 'stubs'}:{self.folder / 'code'}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if ": error: " in line]


def sources() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("*.py"))}


def test_all_that_our_code_says_is_in_nvidias_bindings(checker: Checker) -> None:
    assert checker.complaints(sources()) == []


@pytest.mark.timeout(300)
def test_no_name_of_nvidias_that_our_code_uses_could_be_misspelt(
    checker: Checker, listing: dict[str, Any]
) -> None:
    """Misspells all of them at once; each has to be complained of, or else nothing checks it.

    What is misspelt hides what comes after it, so the ones that were found are put right and the rest tried again.
    """
    left = set(uses(listing))
    assert len(left) > 50
    while left:
        found = {
            (file, line, name)
            for text in checker.complaints(misspelt(left))
            for file, line, name in left
            if f"/{file}:{line}: " in text and re.search(rf"\b{name}_\W", text)
        }
        assert found, f"nothing checks {sorted(left)}"
        left -= found


def test_an_argument_that_is_misspelt_or_missing_is_found(checker: Checker) -> None:
    given = sources()
    for file, right, wrong in (
        ("building.py", "min=shapes.least", "least=shapes.least"),
        ("building.py", "ignore_mismatch=False", "ignore=False"),
        ("building.py", "build_serialized_network(network, config)", "build_serialized_network(network)"),
        ("progress.py", "phase_name: str, step: SupportsInt", "phase: str, step: SupportsInt"),
        ("lane.py", "set_optimization_profile_async(0, ", "set_optimization_profile_async("),
    ):
        assert right in given[file]
        assert checker.complaints(given | {file: given[file].replace(right, wrong)}), wrong


def uses(listing: dict[str, Any]) -> Iterator[Misspelt]:
    """Every attribute in our code that is called like something in the bindings, and is not our own."""
    known = members(listing)
    for file, source in sources().items():
        if "import trt" not in source and "import tensorrt" not in source and ", trt" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and node.attr in known and not is_ours(node):
                yield file, node.end_lineno or 0, node.attr


def members(listing: dict[str, Any]) -> set[str]:
    classes = listing["classes"]
    found = set(classes) | {
        member for kind in classes.values() for member in (*kind["members"], *kind["enum"])
    }
    return found - {"__init__"}


OURS = {
    "close", "dtype", "itemsize", "nbytes", "name", "shape", "stream",
}  # fmt: skip
"""Members of NVIDIA's classes whose names we use for things of our own and never for theirs."""


def is_ours(node: ast.Attribute) -> bool:
    return node.attr in OURS or (isinstance(node.value, ast.Name) and node.value.id in ("np", "onnx", "self"))


def misspelt(names: set[Misspelt]) -> dict[str, str]:
    changed = {file: source.splitlines(keepends=True) for file, source in sources().items()}
    for file, line, name in names:
        text = changed[file][line - 1]
        changed[file][line - 1] = re.sub(rf"\.{name}\b", f".{name}_", text)
    return {file: "".join(lines) for file, lines in changed.items()}


def fake_classes(version: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    monkeypatch.setenv("FAKE_TENSORRT", version)
    with installed():
        import tensorrt  # noqa: PLC0415 # the fake, which is only there inside

        module: types.ModuleType = tensorrt
        return {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == "tensorrt" and not name.startswith("_")
        }


def test_the_fake_has_nothing_that_nvidias_bindings_do_not_have(
    listing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [
        complaint
        for name, kind in fake_classes(listing["version"], monkeypatch).items()
        for complaint in differences(name, kind, listing["classes"])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"parse_it": lambda self: True}, "OnnxParser.parse_it is not there"),
        ({"parse": lambda self, content: True}, "OnnxParser.parse takes no 'content'"),
        ({"num_errors": lambda self: 0}, "OnnxParser.num_errors is a property"),
        ({"parse": property(lambda self: True)}, "OnnxParser.parse is a method"),
    ],
)
def test_a_fake_that_departs_is_found(listing: dict[str, Any], body: dict[str, Any], complaint: str) -> None:
    assert complaint in list(differences("OnnxParser", type("OnnxParser", (), body), listing["classes"]))


def differences(name: str, kind: type, classes: dict[str, Any]) -> Iterator[str]:
    """What a class of the fake has that the real one does not."""
    if name not in classes:
        yield f"{name} is not there"
        return
    real = classes[name]
    if issubclass(kind, enum.Enum):
        yield from (f"{name}.{member} is not there" for member in set(kind.__members__) - set(real["enum"]))
        return
    instance = assigned(kind)
    for member in {*vars(kind), *instance}:
        if member.startswith("_") and member != "__init__":
            continue
        described = real["members"].get(member)
        if described is None:
            yield f"{name}.{member} is not there"
        elif member in instance:
            if not described.get("writable", described["kind"] == "property"):
                yield f"{name}.{member} is a {described['kind']}"
        else:
            yield from departures(f"{name}.{member}", vars(kind)[member], described)


def assigned(kind: type) -> set[str]:
    """Public attributes that the constructor sets."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return set()
    return set(re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", source))


def departures(name: str, value: Any, described: dict[str, Any]) -> Iterator[str]:
    if isinstance(value, type) or described["kind"] == "constant":
        return
    if isinstance(value, property) != (described["kind"] == "property"):
        yield f"{name} is a {described['kind']}"
        return
    if not isinstance(value, types.FunctionType) or not described["signatures"]:
        return
    real = {
        argument.partition(": ")[0]
        for signature in described["signatures"]
        for argument in split_arguments(signature.partition("(")[2].rpartition(") -> ")[0])
    }
    for parameter in inspect.signature(value).parameters:
        if parameter != "self" and parameter not in real:
            yield f"{name} takes no {parameter!r}"
