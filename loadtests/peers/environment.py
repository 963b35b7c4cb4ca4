"""Makes the peers' virtual environment and starts programs in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
# A package that reports home; without it the others run and stay silent.
_UNWANTED = "openvino-telemetry"
_SILENT = {"ORT_DISABLE_TELEMETRY": "1"}
"""Keeps onnxruntime from reporting home."""


class PeerError(Exception):
    """A peer could not be installed or did not do its work; the message is the last line that it wrote."""


class PeerEnvironment:
    """A virtual environment with pinned peers in `folder`, made on first use and after every change."""

    def __init__(
        self, folder: Path, *, requirements: Path = REQUIREMENTS, base: str = sys.executable
    ) -> None:
        """`base` is the Python that the environment is made with."""
        self.python = folder / "bin" / "python"
        self._requirements = requirements
        # Why a distribution is missing, by its name.
        self.missing: dict[str, str] = {}
        stamp = folder / "installed.json"
        wanted = requirements.read_text()
        if stamp.exists() and (known := json.loads(stamp.read_text()))["requirements"] == wanted:
            self.missing = known["missing"]
            return
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        for line in wanted.splitlines():
            if line and not line.startswith("#"):
                self._install(line)
        self._pip("uninstall", "--yes", _UNWANTED)
        stamp.write_text(json.dumps({"requirements": wanted, "missing": self.missing}))

    def _install(self, requirement: str) -> None:
        """One by one, each held to all pins, so that one that cannot be had costs only its own rows."""
        result = self._pip("install", "--constraint", str(self._requirements), requirement)
        if result.returncode:
            self.missing[requirement.partition("==")[0]] = _last_line(result.stderr)

    def _pip(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments],
            check=False,
            capture_output=True,
            text=True,
        )

    def run(self, module: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Runs `module` with `job` as JSON on its standard input; its last line is the result as JSON.

        Raises:
            PeerError: it failed.
        """
        result = subprocess.run(
            [str(self.python), "-m", module],
            input=json.dumps(job),
            cwd=ROOT,
            env=os.environ | _SILENT,
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise PeerError(_last_line(result.stderr) or f"it ended with status {result.returncode}")
        answer: dict[str, Any] = json.loads(_last_line(result.stdout))
        return answer


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
