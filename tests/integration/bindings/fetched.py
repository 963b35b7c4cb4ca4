"""NVIDIA's packages, fetched from the package index and made to import on a machine without TensorRT or a GPU.

TensorRT's Python bindings need three libraries and nine functions of them; here they are stand-ins that do nothing.
The bindings import with them, so that every class, property and argument name is there to compare with.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
VERSIONS = ("10.16.1.11", "11.4.0.106")
"""Of TensorRT: the last of the line that is installed most, and the newest."""
CUDA_BINDINGS = "13.5.0"
CUDA_PATHFINDER = "1.9.1"
PYCUDA = "2026.1"
_FOLDER = Path(tempfile.gettempdir()) / f"octet-tests-bindings-{os.getuid()}"
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def tensorrt_listing(version: str) -> dict[str, Any]:
    """What `listing` prints of NVIDIA's own bindings of this version."""
    folder = _unpacked("tensorrt-cu13-bindings", version)
    libraries = _stand_ins(version.partition(".")[0])
    listing = subprocess.run(
        [sys.executable, HERE / "listing.py", "tensorrt_bindings"],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found: dict[str, Any] = json.loads(listing)
    assert found["version"] == version
    return found


def cuda_bindings() -> str:
    """The search path to import `cuda.bindings` from."""
    packages = (("cuda-bindings", CUDA_BINDINGS), ("cuda-pathfinder", CUDA_PATHFINDER))
    return os.pathsep.join(str(_unpacked(*package)) for package in packages)


def _unpacked(package: str, version: str) -> Path:
    """The contents of a wheel of the package index, fetched once."""
    folder = _FOLDER / f"{package}-{version}"
    if folder.is_dir():
        return folder
    _FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
        _download(f"{package}=={version}", Path(scratch))
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(scratch) / "contents")
        # Another process may have been faster.
        if not folder.is_dir():
            shutil.move(Path(scratch) / "contents", folder)
    return folder


def _download(requirement: str, folder: Path, kind: str = "--only-binary=:all:") -> None:
    fetched = subprocess.run(
        [*_PIP, kind, "--dest", folder, requirement],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    if fetched.returncode:
        pytest.skip(f"the package index gives no {requirement} to this machine: {fetched.stderr[-300:]}")


def _stand_ins(major: str) -> Path:
    """A folder with the libraries that the bindings link to."""
    folder = _FOLDER / f"stand-ins-{major}"
    if folder.is_dir():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build stand-ins of TensorRT's libraries with")
    with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
        built = Path(scratch) / "libraries"
        built.mkdir()
        source = Path(scratch) / "entry_points.c"
        for library in _LIBRARIES:
            # The bindings look symbols up wherever they are.
            names = _ENTRY_POINTS if library == "nvinfer" else ()
            source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in names) + "\n")
            target = built / f"lib{library}.so.{major}"
            subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
        if not folder.is_dir():
            shutil.move(built, folder)
    return folder


def pycuda_sources() -> Path:
    """The folder of pycuda's source."""
    folder = _FOLDER / f"pycuda-{PYCUDA}"
    if folder.is_dir():
        return folder
    _FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
        # pip prepares what it downloads, for which it installs setuptools and numpy in a place of their own.
        _download(f"pycuda=={PYCUDA}", Path(scratch), kind="--no-binary=pycuda")
        [archive] = Path(scratch).glob("pycuda-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        if not folder.is_dir():
            shutil.move(Path(scratch) / f"pycuda-{PYCUDA}", folder)
    return folder
