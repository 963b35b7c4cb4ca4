"""Starts the other fronts and takes them down again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.demo import free_port
from loadtests.peers.environment import ROOT, PeerEnvironment

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Front:
    """A server that the benchmark can start."""

    name: str
    # The module that is run, with the port and these as its arguments.
    module: str
    arguments: tuple[str, ...] = ()
    # Where the model is, on that server.
    path: str
    # The pinned packages of its own environment; None runs it in octet's.
    requirements: Path | None = None
    # The Python that its environment is made with.
    base: str = sys.executable


_FOLDER = Path(__file__).parent
# pytriton 0.7 failed under CPython 3.11.7 as pyenv builds it, and ran under Debian's 3.11.2.
_SYSTEM_PYTHON = "/usr/bin/python3"

ECHO = Front(name="echo", module="with_echo", path="/")
PEERS = (
    *(
        Front(
            name=name,
            module="with_mosec",
            arguments=(str(rows),),
            path="/inference",
            requirements=_FOLDER / "mosec.txt",
        )
        for name, rows in (("mosec", 64), ("mosec, full", 32))
    ),
    Front(
        name="pytriton",
        module="with_pytriton",
        path="/v2/models/tiny/infer",
        requirements=_FOLDER / "pytriton.txt",
        base=_SYSTEM_PYTHON,
    ),
    Front(name="litserve", module="with_litserve", path="/predict", requirements=_FOLDER / "litserve.txt"),
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """A server that is up."""

    name: str
    url: str
    # Process id; what it started belongs to it.
    process: int


class FrontError(Exception):
    """A front could not be installed or did not come up; the message says why."""


@contextlib.contextmanager
def running(front: Front, body: bytes, log: Path) -> Iterator[Side]:
    """The front, once it answers `body` with 200.

    Raises:
        FrontError: it could not be installed, or ended, or did not answer in time.
    """
    python = Path(sys.executable) if front.requirements is None else _installed(front, front.requirements)
    port = free_port()
    url = f"http://127.0.0.1:{port}{front.path}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", f"loadtests.fronts.{front.module}", str(port), *front.arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, url, body, log)
        yield Side(name=front.name, url=url, process=process.pid)
    finally:
        _stop(process)


def _installed(front: Front, requirements: Path) -> Path:
    if not Path(front.base).exists():
        raise FrontError(f"there is no {front.base}")
    environment = PeerEnvironment(
        ROOT / ".octet-bench" / requirements.stem, requirements=requirements, base=front.base
    )
    if environment.missing:
        raise FrontError("; ".join(environment.missing.values()))
    return environment.python


def _wait(process: subprocess.Popen[bytes], url: str, body: bytes, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.2)
    words = log.read_text(errors="replace").strip().splitlines()
    raise FrontError(words[-1] if words else "it did not come up")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends it and what it started: a session of its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S / 3)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
