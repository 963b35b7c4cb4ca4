"""The folder of one build: the files that each phase reads and writes, by name.

A phase reads only what earlier phases wrote and adds files of its own, so a build that was cut off goes on
from the files of its last finished phase, on this machine or on another one.
"""

from pathlib import Path

UPLOADED_MODEL = "upload/model.onnx"
UPLOADED_WEIGHTS = "upload/weights-"
"""Prefix of the files that hold weights of the uploaded model; a number follows."""
WEIGHTS_INDEX = "upload/weights.json"
"""A list of what the model calls those files, in the order of their numbers; there where such files are."""
UPLOADED_SAMPLES = "upload/samples-"
"""Prefix of the sample files as they came; a number and the file's own ending follow."""
UPLOADED_LABELS = "upload/labels.npy"
"""The class of each sample, in upload order; most builds have none."""
VALIDATED = "validated.json"
SAMPLES = "samples/"
"""Prefix of the checked samples, converted to one layout."""
PREPARED = "prepared.onnx"
"""The FP32 model after shape inference, folding and opset upgrade: what is observed and quantized, and the
fallback that serves where the 8-bit engine may not."""
ARRIVED = "arrived.json"
"""What is known of a model that arrived quantized; not there for others."""
PREPARED_WEIGHTS = "prepared.onnx.data"
"""Weights of the model before, where it is too large for one file."""
VARIANTS = "variants/"
"""Prefix of the FP32 models that may be quantized, all of one function, and of what was observed of each."""
CALIBRATION = "calibration.json"
"""The clipping thresholds of the 8-bit model."""
HISTOGRAMS = "histograms.npz"
"""What they were chosen from, tensor by tensor in the order of the calibration."""
CHOICES = "choices.json"
"""What the 8-bit model was chosen from."""
QUANTIZED = "quantized.onnx"
QUANTIZED_WEIGHTS = "quantized.onnx.data"
"""Weights of the model before, where it is too large for one file."""
LAYER_ERRORS = "layer_errors.json"
COMPILED = "compiled.json"
PROOF = "proof.npz"
REPORT = "report.json"
ENGINES = "engines/"
"""Prefix of the engines that reproduced the proof, as the runtime's cache keeps them: hardware key, then name."""
PHASE_RECORDS = "phases/"
"""Prefix of what each phase says of itself: its seconds and its summary."""


class Workspace:
    """Paths of one build's files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """The place of the file `name`; its folder is made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def list(self, prefix: str) -> list[str]:
        """Names of the files that start with `prefix`, in order."""
        return sorted(
            name
            for path in self.root.rglob("*")
            if path.is_file() and (name := path.relative_to(self.root).as_posix()).startswith(prefix)
        )
