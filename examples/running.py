"""Starts `octet serve` as a child and takes it down again, whatever happens in between."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class StartError(Exception):
    """The service did not come up."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that is up."""

    # Where it listens, for example http://127.0.0.1:8000.
    address: str
    # Where it writes what it has to say.
    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def service(home: Path, *, port: int) -> Iterator[Running]:
    """Runs a service with its data in `home`; yields once it is ready.

    Raises:
        StartError: the service ended, or was not ready in time; the message has its last words.
    """
    log = home / "octet.log"
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OCTET_HOME": str(home), "OCTET_HOST": "127.0.0.1", "OCTET_PORT": str(port)}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the service in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        running = Running(address=f"http://127.0.0.1:{port}", log=log, process=process)
        _wait_until_ready(running)
        yield running
    finally:
        _stop(process)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that its clean-up runs."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_until_ready(running: Running) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise StartError(
                f"octet ended with status {running.process.returncode}:\n{_last_lines(running.log)}"
            )
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{running.address}/v2/health/ready", timeout=1.0).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise StartError(f"octet was not ready after {START_TIMEOUT_S:.0f} s:\n{_last_lines(running.log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_lines(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
