"""Phases that do in a blink what the real ones take seconds for; the uploaded text says what goes wrong."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import InvalidModelError
from engines.workspace import PREPARED, QUANTIZED, REPORT, UPLOADED_MODEL, Workspace
from service.builds.child import Function, Progress, main

PLAN = [
    {"name": "validate", "outputs": ["validated.json", "samples/"]},
    {"name": "calibrate", "outputs": [PREPARED, QUANTIZED]},
    {"name": "verify", "outputs": [REPORT]},
]


def plan(_arguments: Mapping[str, Any], _progress: Progress) -> Any:
    return PLAN


def phase(arguments: Mapping[str, Any], progress: Progress) -> Any:
    workspace = Workspace(Path(arguments["workspace"]))
    name = arguments["phase"]
    upload = workspace.path(UPLOADED_MODEL).read_text()
    if upload == f"invalid in {name}":
        raise InvalidModelError("the upload is no ONNX model.")
    if upload == f"crash in {name}":
        os.kill(os.getpid(), signal.SIGSEGV)
    if upload.startswith(f"crash once in {name} "):
        marker = Path(upload.removeprefix(f"crash once in {name} "))
        if not marker.exists():
            marker.touch()
            workspace.path("samples/half-written").touch()
            os.kill(os.getpid(), signal.SIGSEGV)
    progress(0.5)
    if upload == f"hang in {name}":
        time.sleep(60)
    written = {
        "validate": {"validated.json": "{}", "samples/image.npy": upload},
        "calibrate": {
            PREPARED: f"prepared {upload}",
            QUANTIZED: f"quantized {upload}",
            "scratch": "not an output",
        },
        "verify": {
            REPORT: json.dumps({"of": workspace.path(QUANTIZED).read_text()}) if name == "verify" else ""
        },
    }[name]
    for file, text in written.items():
        workspace.path(file).write_text(text)
    progress(1.0)
    return {name: os.getpid(), "last": name}


FUNCTIONS: dict[str, Function] = {"plan": plan, "phase": phase}

if __name__ == "__main__":
    main(FUNCTIONS)
