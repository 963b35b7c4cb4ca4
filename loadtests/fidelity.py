"""How near a quantized model's outputs are to FP32's, as the benchmark counts it."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class Agreement(enum.Enum):
    """What it takes for a row to count as answered alike."""

    CLASS = "class"
    """The highest score is at the same place."""
    NEIGHBOUR = "nearest neighbour"
    """Among all other rows' outputs of the same model, the same row is the nearest by cosine."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Figures over all scored rows."""

    # Mean over rows of the cosine between the two outputs.
    cosine: float
    # Share of rows answered alike.
    agreement: float
    # 10 log10(sum of squares of FP32's outputs / sum of squares of the differences).
    sqnr_db: float


def fidelity(reference: Path, outputs: Path, agreement: Agreement) -> Fidelity | None:
    """Compares two .npy files of outputs, [N, C] each; None where the second holds NaN or infinity."""
    expected, seen = np.load(reference).astype(np.float64), np.load(outputs).astype(np.float64)
    if not np.isfinite(seen).all():
        return None
    answer = _nearest if agreement is Agreement.NEIGHBOUR else _highest
    noise = np.square(seen - expected).sum()
    return Fidelity(
        cosine=float((_unit(expected) * _unit(seen)).sum(1).mean()),
        agreement=float((answer(expected) == answer(seen)).mean()),
        sqnr_db=float(10 * np.log10(np.square(expected).sum() / noise)) if noise else float("inf"),
    )


def _unit(rows: Any) -> Any:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def _highest(rows: Any) -> Any:
    return rows.argmax(1)


def _nearest(rows: Any) -> Any:
    likeness = _unit(rows) @ _unit(rows).T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(1)
