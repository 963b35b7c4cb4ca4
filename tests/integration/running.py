"""A real service in processes of its own, as `octet serve` starts it, for the tests of this package."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
START_TIMEOUT_S = 60.0


class Octet:
    """`octet serve`, or another `command`, in `home`; may be killed and started again, with the same port."""

    def __init__(
        self,
        home: Path,
        *,
        command: str = "serve",
        arguments: Sequence[str] = (),
        source: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.command = command
        self.arguments = arguments
        # Where the code lies that runs.
        self.source = source
        self.port = free_port()
        self.environment = dict(environment or {})
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30.0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.home.parent / f"{self.home.name}.log").read_text()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        self.spawn()
        wait_for(self.is_ready, f"octet to be ready at port {self.port}", START_TIMEOUT_S, self)

    def spawn(self) -> None:
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", self.command, *self.arguments],
                cwd=self.source,
                env={
                    **os.environ,
                    "OCTET_HOME": str(self.home),
                    "OCTET_PORT": str(self.port),
                    "OCTET_THREADS": "2",
                    # Compiled once for all the services of a test run.
                    "NUMBA_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"octet-tests-numba-{os.getuid()}"),
                    **self.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/v2/health/ready").status_code == 200
        return False

    def poll(self) -> int | None:
        """The supervisor's exit status, once it has ended."""
        return self._process.poll() if self._process else 0

    def wait(self, timeout_s: float = 40.0) -> int:
        return self._process.wait(timeout_s) if self._process else 0

    def stop(self) -> int:
        """Ends it in order; returns the exit status."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends the supervisor a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the supervisor at once; what it started has to notice by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def processes(self, module: str = "") -> list[int]:
        """Living processes of this service, by the marker in their environment; `module` keeps only those."""
        return [pid for pid, command in living(f"OCTET_HOME={self.home}") if module in command]

    def build_children(self) -> list[int]:
        """Children of the worker; the server has some of its own, in which it tries what it is about to load."""
        workers = self.processes("service.worker")
        return [pid for pid in self.processes("service.builds.child") if parent(pid) in workers]

    def upload(self, model: str = "digits", *, force: bool = False, **options: Any) -> httpx.Response:
        """Posts the digits classifier with its samples; the effort is fast unless `options` say else."""
        return self.post(model, (DIGITS / "digits.onnx").read_bytes(), force=force, **options)

    def post(
        self,
        model: str,
        onnx: bytes,
        *,
        force: bool = False,
        weights: Mapping[str, bytes] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Posts a model of the digits' inputs; `weights` are its external data, by file name; effort as in `upload`."""
        return self.client.post(
            f"/v1/models/{model}/builds",
            params={"force": force},
            files=[
                ("model", ("model.onnx", onnx)),
                *(("weights", part) for part in (weights or {}).items()),
                ("samples", ("samples.npz", (DIGITS / "samples.npz").read_bytes())),
                (
                    "options",
                    (
                        None,
                        httpx.Request("POST", "http://x", json={"effort": "fast"} | options).content,
                        "application/json",
                    ),
                ),
            ],
        )

    def build(self, build_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/builds/{build_id}")
        assert answer.status_code == 200, answer.text
        build: dict[str, Any] = answer.json()
        return build

    def ended(self, build_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The build, once it has ended."""
        wait_for(
            lambda: self.build(build_id)["state"] not in ("queued", "running"),
            f"build {build_id} to end",
            timeout_s,
            self,
        )
        return self.build(build_id)

    def serves(self, model: str) -> bool:
        return self.client.get(f"/v2/models/{model}/ready").status_code == 200

    def infer(self, model: str) -> httpx.Response:
        return self.client.post(f"/v2/models/{model}/infer", content=(DIGITS / "request.json").read_bytes())


@contextlib.contextmanager
def running(home: Path, **environment: str) -> Iterator[Octet]:
    """A service that is ready; afterwards nothing of it is left."""
    octet = Octet(home, environment=environment)
    try:
        octet.start()
        yield octet
    finally:
        octet.client.close()
        if octet.poll() is None:
            octet.stop()
        wait_for(lambda: not octet.processes(), "the service's processes to end", 10.0, octet)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float, octet: Octet) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; the log ends with\n{octet.log[-3000:]}")
        time.sleep(0.05)


def living(marker: str) -> list[tuple[int, str]]:
    """Process id and command line of the processes that have `marker` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(folder.name), command))
    return found


def parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        # The command's name, in parentheses, may hold anything; what follows it does not.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
