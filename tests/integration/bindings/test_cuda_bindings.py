"""What our code and the fakes say to pycuda and cuda-bindings, held against those packages' own names.

cuda-bindings imports without a GPU. pycuda is source only: its names are read from the C++ that registers them, and
where a built one is installed, from that.
"""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.fakes import installed
from tests.integration.bindings.fetched import cuda_bindings, pycuda_sources

MODULE = Path(__file__).parents[3] / "engines" / "runtimes" / "cuda.py"
ARGUMENTS = {
    "pagelocked_empty": {"shape", "dtype", "order", "mem_flags"},
    "memcpy_htod_async": {"dest", "src", "stream"},
    "memcpy_dtoh_async": {"dest", "src", "stream"},
    "init": {"flags"},
}
"""Of the functions of pycuda's that the fake has, those that name their arguments."""


def said_to(alias: str) -> set[str]:
    """Attributes of an imported module that our code uses."""
    tree = ast.parse(MODULE.read_text(encoding="utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == alias
    }


def methods_called() -> set[str]:
    """Methods that our code calls on objects of pycuda's."""
    return {
        "push",
        "pop",
        "name",
        "compute_capability",
        "retain_primary_context",
        "free",
        "synchronize",
        "handle",
    }


@pytest.fixture(scope="module")
def registered() -> str:
    """The C++ that gives pycuda's classes and functions their names."""
    return (pycuda_sources() / "src" / "wrapper" / "wrap_cudadrv.cpp").read_text(encoding="utf-8")


def is_registered(name: str, source: str) -> bool:
    simple = rf"DEF_SIMPLE_(?:METHOD|FUNCTION)(?:_WITH_ARGS)?\({name}[,)]"
    return bool(re.search(rf'"{name}"|{simple}|DECLARE_EXC\({name},', source))


def test_the_names_that_our_code_says_to_pycuda_are_its_own(registered: str) -> None:
    used = said_to("driver") | methods_called()
    assert {"mem_alloc", "Stream", "MemoryError"} <= used
    assert [name for name in used if not is_registered(name, registered)] == []
    assert not is_registered("mem_allocate", registered)


def test_methods_that_our_code_calls_on_pycudas_objects_are_listed() -> None:
    text = MODULE.read_text(encoding="utf-8")
    called = set(re.findall(r"(?:_device|_context|Context|allocation|base|_open\(\))\.(\w+)", text))
    # A Scope's device is ours.
    # A Scope's device is ours.
    assert called - {"active"} <= methods_called()


def test_the_fake_pycuda_has_nothing_that_pycuda_does_not_have(registered: str) -> None:
    with installed():
        import pycuda.driver as fake  # noqa: PLC0415 # the fake, which is only there inside

        found = public(fake)
    assert "DeviceAllocation" in found
    assert [name for name in found if not is_registered(name, registered)] == []
    for name, arguments in ARGUMENTS.items():
        assert set(inspect.signature(getattr(fake, name)).parameters) == arguments
        call = re.search(rf'py::def\("{name}".*?;', registered, re.DOTALL)
        assert call is not None
        assert set(re.findall(r'py::args?\("(\w+)"', call[0])) == arguments


def public(module: types.ModuleType) -> set[str]:
    """Names of a fake module's own functions and classes, and of their methods."""
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    members = {member for value in own.values() if isinstance(value, type) for member in vars(value)}
    return set(own) | {
        member for member in members if not member.startswith("_") and member not in ("memory", "annotations")
    }


def test_the_names_that_our_code_and_the_fake_say_to_cuda_bindings_are_its_own() -> None:
    with installed():
        from cuda.bindings import driver as fake  # noqa: PLC0415 # the fake, which is only there inside

        said = public(fake) - set(dir(int))
    used = said_to("graphs")
    assert "cuGraphLaunch" in used
    script = (
        "import sys; from cuda.bindings import driver\n"
        "flat = {name for holder in (driver, driver.CUresult, driver.CUstreamCaptureMode) for name in dir(holder)}\n"
        "print(*(name for name in sys.argv[1:] if name not in flat))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *sorted(used | said), "cuGraphLunch"],
        env={"PYTHONPATH": cuda_bindings()},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["cuGraphLunch"]


@pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None,
    reason="pycuda is not installed; it has to be compiled, and to import it needs NVIDIA's driver",
)
def test_an_installed_pycuda_has_the_names_too() -> None:
    import pycuda.driver  # noqa: PLC0415 # it is installed on few machines

    assert [name for name in said_to("driver") if not hasattr(pycuda.driver, name)] == []
