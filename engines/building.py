"""All phases of a build in one call, in this process."""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from engines import resources
from engines.options import BuildOptions
from engines.pipeline import PHASES
from engines.reports.report import Report
from engines.workspace import (
    REPORT,
    UPLOADED_LABELS,
    UPLOADED_MODEL,
    UPLOADED_SAMPLES,
    UPLOADED_WEIGHTS,
    WEIGHTS_INDEX,
    Workspace,
)

Progress = Callable[[str, float], None]
"""Takes the phase and the share of it that is done, 0 to 1."""


def quantize(  # noqa: PLR0913 # the public entry: all but three are optional and named
    model: Path,
    samples: Sequence[Path],
    folder: Path,
    options: BuildOptions | None = None,
    *,
    labels: Path | None = None,
    weights: Sequence[Path] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantizes an ONNX file and proves the engine that comes of it.

    Args:
        model: an ONNX file in FP32.
        samples: .npz, .npy or .safetensors files of example inputs, a batch along axis 0.
        folder: where all files of the build go, in place of those of an earlier one: the 8-bit model is
            `quantized.onnx`, the report `report.json`. `load_engine` loads from it.
        options: what is asked for; the defaults where None.
        labels: a .npy file of the samples' classes, integers of shape [rows]: the report then has both engines'
            accuracies. They change no choice.
        weights: the files that hold weights of the model, under the names that it calls them.
        threads: processors to use; all of this process's where None.
        progress: is told how far the build is.

    Raises:
        EngineError: the first thing that is wrong, in a sentence.
    """
    options = options or BuildOptions()
    workspace = Workspace(folder)
    for prefix in (
        UPLOADED_SAMPLES,
        UPLOADED_LABELS,
        UPLOADED_WEIGHTS,
        WEIGHTS_INDEX,
        *(output for phase in PHASES for output in phase.outputs),
    ):
        for stale in workspace.list(prefix):
            workspace.path(stale).unlink()
    shutil.copyfile(model, workspace.path(UPLOADED_MODEL))
    for number, path in enumerate(weights):
        shutil.copyfile(path, workspace.path(f"{UPLOADED_WEIGHTS}{number:03d}"))
    if weights:
        workspace.path(WEIGHTS_INDEX).write_text(
            json.dumps([path.name for path in weights]), encoding="utf-8"
        )
    for number, path in enumerate(samples):
        shutil.copyfile(path, workspace.path(f"{UPLOADED_SAMPLES}{number:03d}{path.suffix}"))
    if labels is not None:
        shutil.copyfile(labels, workspace.path(UPLOADED_LABELS))
    given = resources.Resources.of_environment()
    with resources.use(resources.Resources(threads=threads or given.threads, cache=given.cache)):
        for phase in PHASES:
            phase.run(workspace, options, functools.partial(_tell, progress, phase.name))
    return Report.load(workspace.path(REPORT))


def _tell(progress: Progress | None, phase: str, done: float) -> None:
    if progress is not None:
        progress(phase, done)
