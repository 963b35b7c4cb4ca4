"""The process in which native libraries touch uploads: it may crash, hang or be killed without harm.

`python -m service.builds.child REQUESTS RESPONSES` reads calls from one pipe and answers on another, a JSON object a
line; what libraries print goes to standard output and standard error, which are no part of the protocol.

    -> {"function": "phase", "arguments": {...}}
    <- {"progress": 0.25}
    <- {"result": ...}  or  {"error": "<sentence>", "code": "<dotted.code>"}
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from engines.errors import EngineError
from engines.options import BuildOptions
from engines.runtimes.engine_cache import noting_entries
from engines.workspace import ENGINES, Workspace
from service.processes.hardware import local_hardware
from service.processes.lifeline import end_with_parent
from service.storage.disk_space import full, is_full

Progress = Callable[[float], None]
"""Takes the share of the call that is done, 0 to 1."""
Function = Callable[[Mapping[str, Any], Progress], Any]
"""Takes the arguments as they came from JSON and where to report progress; returns JSON."""

INTERNAL = "build.internal"
"""Code of an error that nobody foresaw."""
OUT_OF_MEMORY = "build.memory"


def plan(_arguments: Mapping[str, Any], _progress: Progress) -> list[dict[str, Any]]:
    """The phases of a build, with the workspace names or prefixes of the files that each writes."""
    from engines.pipeline import PHASES  # noqa: PLC0415 - native libraries load when they are needed

    last = PHASES[-1].name
    return [
        {"name": known.name, "outputs": [*known.outputs, *([ENGINES] if known.name == last else [])]}
        for known in PHASES
    ]


def phase(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Runs one phase of a build in the folder `workspace`."""
    from engines.pipeline import PHASES  # noqa: PLC0415 - native libraries load when they are needed

    wanted = next(known for known in PHASES if known.name == arguments["phase"])
    options = BuildOptions.parse(arguments["options"])
    workspace = Workspace(Path(arguments["workspace"]))
    with noting_entries() as entries:
        summary = wanted.run(workspace, options, progress)
    if wanted is PHASES[-1] and os.environ.get("OCTET_SHARE_ENGINES"):
        # What has reproduced the proof, for servers of the same hardware.
        for entry in entries:
            shutil.copyfile(entry, workspace.path(f"{ENGINES}{entry.parent.name}/{entry.name}"))
    return summary


def load_check(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Loads the version in `folder` as the server would: compiles it and replays its proof."""
    from engines import load_engine  # noqa: PLC0415 - native libraries load when they are needed

    cache = arguments.get("cache")
    with noting_entries() as entries:
        loaded = load_engine(
            Path(arguments["folder"]),
            BuildOptions.parse(arguments["options"]),
            threads=int(arguments["threads"]),
            cache=Path(cache) if cache else None,
            streams=int(arguments["lanes"]),
        )
    with loaded.engine:
        progress(1.0)
        return {
            "precision": loaded.precision,
            "refusal": loaded.refusal,
            "batchable": loaded.batchable,
            "fit": loaded.fit.model_dump(mode="json"),
            "entries": sorted(str(entry.relative_to(cache)) for entry in entries) if cache else [],
        }


def hardware(_arguments: Mapping[str, Any], _progress: Progress) -> str:
    """The kind of hardware of this machine."""
    return local_hardware()


FUNCTIONS: Mapping[str, Function] = {
    "hardware": hardware,
    "load_check": load_check,
    "phase": phase,
    "plan": plan,
}
"""All that a child can be asked to do."""


def main(functions: Mapping[str, Function] = FUNCTIONS) -> None:
    """Serves calls until the other end closes the pipe."""
    end_with_parent()
    _limit_files(int(os.environ.get("OCTET_FILE_BYTES", "0")))
    os.nice(int(os.environ.get("OCTET_NICENESS", "0")))
    requests, responses = (int(argument) for argument in sys.argv[1:3])
    with os.fdopen(requests, "rb") as calls, os.fdopen(responses, "wb", buffering=0) as answers:
        for line in calls:
            answers.write(_run(functions, json.loads(line), answers))


def _run(functions: Mapping[str, Function], call: dict[str, Any], answers: IO[bytes]) -> bytes:
    try:
        result = functions[call["function"]](
            call["arguments"], lambda done: _write(answers, {"progress": float(done)})
        )
        return _encode({"result": result})
    except Exception as error:  # noqa: BLE001 - whatever a library raises must become an answer
        return _encode(_described(error, call["arguments"]))


def _described(error: Exception, arguments: Mapping[str, Any]) -> dict[str, str]:
    """An error as it goes to the parent."""
    if is_full(error):
        # Whatever a library made of it: the files of a call are all in one folder.
        full_disk = full(Path(arguments.get("workspace") or arguments.get("folder") or "."))
        return {"error": str(full_disk), "code": full_disk.code}
    if isinstance(error, EngineError):
        return {"error": str(error), "code": error.code}
    if isinstance(error, MemoryError):
        return {"error": "memory ran out", "code": OUT_OF_MEMORY}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}", "code": INTERNAL}


def _write(answers: IO[bytes], message: dict[str, Any]) -> None:
    answers.write(_encode(message))


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def _limit_files(file_bytes: int) -> None:
    """No core dumps, which would hold the upload; no larger file; and first to go when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main()
