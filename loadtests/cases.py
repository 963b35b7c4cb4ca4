"""The models that the accuracy benchmark measures, and their samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.fidelity import Agreement
from loadtests.peers.settings import Setting

ROOT = Path(__file__).parent.parent
_DIGITS = ROOT / "examples" / "digits"
_ZOO = ROOT / "loadtests" / "models"
_SENTENCES = ROOT / ".octet-bench" / "minilm"
# The images before this one trained the networks.
_FIRST_KEPT_ASIDE = 1197
_COMMON = tuple(setting for setting in Setting if setting is not Setting.ORT_U8S8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, what calibrates it and what scores it."""

    name: str
    model: Path
    # Every tool calibrates on all of these.
    calibration: Path
    agreement: Agreement = Agreement.CLASS
    settings: tuple[Setting, ...] = _COMMON
    # What to do where the model is not there.
    remedy: str = "run python -m scripts.train_zoo"


MODELS = {
    case.name: case
    for case in (
        Case(
            name="MiniLM",
            model=_SENTENCES / "minilm.onnx",
            calibration=_SENTENCES / "calibration.npz",
            agreement=Agreement.NEIGHBOUR,
            settings=tuple(Setting),
            remedy="run python -m scripts.export_minilm with the extra `train` installed",
        ),
        Case(name="ViT", model=_ZOO / "vit.onnx", calibration=_DIGITS / "samples.npz"),
        Case(name="residual", model=_DIGITS / "digits.onnx", calibration=_DIGITS / "samples.npz"),
        Case(name="depthwise", model=_ZOO / "depthwise.onnx", calibration=_DIGITS / "samples.npz"),
    )
}


def score_samples(case: Case, folder: Path) -> Path:
    """The .npz of rows that no tool has seen: 1,000 sentences, or the 600 images kept aside from training."""
    if case.agreement is Agreement.NEIGHBOUR:
        return _SENTENCES / "score.npz"
    with np.load(_DIGITS / "digits.npz") as digits:
        np.savez(folder / "score.npz", image=digits["images"][_FIRST_KEPT_ASIDE:].astype(np.float32))
    return folder / "score.npz"
