"""The shape of the code, read from its source: what imports what, and what shipped code does without."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("engines", "service")
# Library -> the one module that may import it.
CONFINED = {
    "onnxruntime": "engines.runtimes.reference",
    "openvino": "engines.runtimes.openvino",
    "tensorrt": "engines.runtimes.tensorrt.library",
    "pycuda": "engines.runtimes.cuda",
    "cuda": "engines.runtimes.cuda",
    "dbos": "service.builds.workflow",
    "obstore": "service.storage.object_store",
}
MOST_LINES = 350


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports(tree: ast.AST, *, late: bool = True) -> Iterator[str]:
    """Names that a module imports; `late` includes those inside of functions and those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif late or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_type_checkers(node)
        ):
            yield from imports(node, late=late)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def graph(*, late: bool) -> dict[str, set[str]]:
    return {
        name: {seen for seen in imports(tree, late=late) if seen in TREES} for name, tree in TREES.items()
    }


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle of the graph, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := visit(name, []))), [])


def test_there_is_code_to_look_at() -> None:
    assert {"engines.errors", "service.errors", "service.catalog.catalog"} <= set(TREES)
    assert (
        "engines.errors" in graph(late=True)["service.errors"]
        or "engines" in graph(late=True)["service.errors"]
    )


def test_cycles_are_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_engines_never_import_the_service() -> None:
    guilty = {
        name: seen
        for name, tree in TREES.items()
        for seen in imports(tree)
        if name.split(".")[0] == "engines"
        and seen.split(".")[0] in ("service", "examples", "tests", "loadtests")
    }
    assert not guilty


def test_the_service_imports_no_tests() -> None:
    guilty = {
        name: seen
        for name, tree in TREES.items()
        for seen in imports(tree)
        if seen.split(".")[0] in ("examples", "tests", "loadtests", "scripts")
    }
    assert not guilty


def test_imports_have_no_cycle() -> None:
    assert cycle(graph(late=False)) == []


@pytest.mark.parametrize("library", CONFINED)
def test_each_runtime_library_is_imported_in_one_module(library: str) -> None:
    guilty = [
        name for name, tree in TREES.items() if any(seen.split(".")[0] == library for seen in imports(tree))
    ]
    assert guilty in ([], [CONFINED[library]])


def test_the_supervisor_loads_no_native_library_and_no_web_server() -> None:
    listing = "import sys, service.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "service" in loaded
    assert not set(loaded) & {*CONFINED, "onnx", "numba", "fastapi", "uvicorn", "sqlalchemy"}


def test_shipped_code_asserts_nothing() -> None:
    guilty = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not guilty


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}
