"""How far an engine's outputs are from FP32's, without labels.

Floating outputs, with reference r and candidate c:

    SQNR = 10 log10(sum r^2 / sum (r - c)^2) dB, over all elements of all rows
    cosine = mean over rows of r.c / (|r| |c|)
    top-1 agreement = share of rows in which the candidate's highest class is one that FP32 ranks highest, for
        outputs that look like class scores: floats of rank 2 with 2 to 100,000 columns

Other outputs (integers, bool) are right or wrong, element by element: `equal_share`. A contract counts them only
where the model has no floating output, as one-hot vectors: SQNR = -10 log10(1 - share), cosine = top-1 = share.

Sums are float64. Infinity in the reference is an answer like any other: the candidate has to have the same
infinity there, and the element is left out of the sums. Anything else that is not finite fails the output.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import CalibrationError, EngineRunError, InvalidOptionsError
from engines.options import Metric
from engines.tensors import Array, TensorSpec

BEST_DB = 200.0
"""Stands for no noise at all (and its negative for a signal that is lost), so that reports stay finite."""
MAX_CLASSES = 100_000
_LOW_PERCENTILE = 5.0


@dataclass(frozen=True, kw_only=True)
class OutputAccuracy:
    """One output against FP32. Fields that make no sense for its type are None."""

    name: str
    rows: int
    sqnr_db: float | None = None
    # The SQNR that 95% of the rows exceed.
    row_sqnr_p5_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    top1_agreement: float | None = None
    # Of outputs that are not floating.
    equal_share: float | None = None
    # Elements that are NaN or infinite where FP32's are not the same.
    nonfinite: int = 0

    def value(self, metric: Metric) -> float | None:
        """The metric of this output, or None where it has none; elements that are not finite make it the worst."""
        share = self.equal_share
        if share is not None:
            return to_db(1.0, 1.0 - share) if metric is Metric.SQNR_DB else share
        worst = {Metric.SQNR_DB: -BEST_DB, Metric.COSINE: -1.0, Metric.TOP1_AGREEMENT: 0.0}
        found = {
            Metric.SQNR_DB: self.sqnr_db,
            Metric.COSINE: self.cosine,
            Metric.TOP1_AGREEMENT: self.top1_agreement,
        }[metric]
        return worst[metric] if self.nonfinite and found is not None else found


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """All outputs of an engine against FP32."""

    outputs: tuple[OutputAccuracy, ...]

    def value(self, metric: Metric) -> float:
        """What a contract is held against: the metric of the worst output.

        Raises:
            InvalidOptionsError: no output has this metric.
        """
        floating = [output for output in self.outputs if output.equal_share is None]
        found = [value for output in floating or self.outputs if (value := output.value(metric)) is not None]
        if not found:
            raise InvalidOptionsError(_no_metric(metric))
        return min(found)


def check_metric(metric: Metric, outputs: Iterable[TensorSpec]) -> None:
    """Checks that a contract in `metric` can be held against a model of these outputs.

    Raises:
        InvalidOptionsError: it cannot.
    """
    specs = tuple(outputs)
    floating = [spec for spec in specs if np.issubdtype(spec.dtype, np.floating)]
    if metric is not Metric.TOP1_AGREEMENT or not floating:
        return
    if not any(len(spec.shape) == 2 and _are_classes(spec.shape[1]) for spec in floating):
        raise InvalidOptionsError(
            f"{_no_metric(metric)} This model's outputs are {', '.join(spec.describe() for spec in specs)}."
        )


class Comparison:
    """Adds up, batch by batch, how far a candidate is from the reference."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Floating | _Exact] = {}

    def add(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        """Counts one batch, rows along axis 0.

        Raises:
            CalibrationError: the reference holds NaN, so there is nothing to be compared with.
            EngineRunError: the candidate lacks an output or gives it another shape.
        """
        for name, right in reference.items():
            found = candidate.get(name)
            if found is None or found.shape != right.shape:
                seen = "is missing" if found is None else f"has the shape {list(found.shape)}"
                raise EngineRunError(
                    f"output {name!r} {seen}; FP32 gives {list(right.shape)} for the same batch."
                )
            if name not in self._outputs:
                self._outputs[name] = _Floating(name) if _is_floating(right) else _Exact()
            self._outputs[name].add(right, found)

    def result(self) -> Accuracy:
        """The accuracy over all batches so far."""
        return Accuracy(outputs=tuple(output.result(name) for name, output in self._outputs.items()))


def to_db(signal: float, noise: float) -> float:
    """The ratio of two energies in decibels, between -200 and 200.

    No noise is 200 dB even where there is no signal; noise without a signal is -200 dB.
    """
    if noise == 0:
        return BEST_DB
    if signal == 0:
        return -BEST_DB
    return max(-BEST_DB, min(BEST_DB, 10.0 * (math.log10(signal) - math.log10(noise))))


class _Floating:
    def __init__(self, name: str) -> None:
        self._name = name
        self._signal = 0.0
        self._noise = 0.0
        self._max_abs_error = 0.0
        self._nonfinite = 0
        self._row_sqnr_db: list[NDArray[np.float64]] = []
        self._cosines: list[NDArray[np.float64]] = []
        self._agreeing: int | None = None

    def add(self, reference: Array, candidate: Array) -> None:
        right, found = _rows(reference), _rows(candidate)
        if np.isnan(right).any():
            raise CalibrationError(
                f"the FP32 model itself answers NaN in output {self._name!r}, so no engine can be compared with "
                "it; check the model with these samples."
            )
        self._count_classes(right, found, reference.ndim)
        same_infinity = np.isinf(right) & (right == found)
        broken = ~same_infinity & ~(np.isfinite(right) & np.isfinite(found))
        self._nonfinite += int(broken.sum())
        left_out = same_infinity | broken
        right, found = np.where(left_out, 0.0, right), np.where(left_out, 0.0, found)
        error = right - found
        signal, noise = (right**2).sum(axis=1), (error**2).sum(axis=1)
        self._signal += float(signal.sum())
        self._noise += float(noise.sum())
        self._max_abs_error = max(self._max_abs_error, float(np.abs(error).max(initial=0.0)))
        self._row_sqnr_db.append(np.array([to_db(*pair) for pair in zip(signal, noise, strict=True)]))
        self._cosines.append(_cosines(right, found))

    def _count_classes(self, right: NDArray[np.float64], found: NDArray[np.float64], rank: int) -> None:
        if rank != 2 or not _are_classes(right.shape[1]):
            return
        # NaN would win every argmax.
        chosen = np.where(np.isnan(found), -np.inf, found).argmax(axis=1)
        highest = right[np.arange(len(right)), chosen] == right.max(axis=1)
        unbroken = ~np.isnan(found).any(axis=1)
        self._agreeing = (self._agreeing or 0) + int((highest & unbroken).sum())

    def result(self, name: str) -> OutputAccuracy:
        row_sqnr_db, cosines = np.concatenate(self._row_sqnr_db), np.concatenate(self._cosines)
        return OutputAccuracy(
            name=name,
            rows=len(cosines),
            sqnr_db=to_db(self._signal, self._noise),
            row_sqnr_p5_db=float(np.percentile(row_sqnr_db, _LOW_PERCENTILE)) if len(row_sqnr_db) else None,
            cosine=float(cosines.mean()) if len(cosines) else None,
            max_abs_error=self._max_abs_error,
            top1_agreement=None if self._agreeing is None else self._agreeing / max(1, len(cosines)),
            nonfinite=self._nonfinite,
        )


class _Exact:
    def __init__(self) -> None:
        self._rows = 0
        self._elements = 0
        self._equal = 0

    def add(self, reference: Array, candidate: Array) -> None:
        self._rows += len(reference)
        self._elements += reference.size
        self._equal += int(np.count_nonzero(reference == candidate))

    def result(self, name: str) -> OutputAccuracy:
        return OutputAccuracy(name=name, rows=self._rows, equal_share=self._equal / max(1, self._elements))


def _is_floating(array: Array) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def _are_classes(columns: int | None) -> bool:
    return columns is None or 2 <= columns <= MAX_CLASSES


def _rows(array: Array) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


def _cosines(right: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each row; two rows of zeros point the same way, a row of zeros and another do not."""
    lengths = np.linalg.norm(right, axis=1), np.linalg.norm(found, axis=1)
    product = lengths[0] * lengths[1]
    same = (lengths[0] == 0) & (lengths[1] == 0)
    dots = np.einsum("ij,ij->i", right, found)
    return np.where(same, 1.0, np.divide(dots, product, out=np.zeros_like(dots), where=product > 0))


def _no_metric(metric: Metric) -> str:
    return (
        f"the contract is in {metric.value}, but no output of the model looks like class scores "
        f"(floats of shape [rows, 2 to {MAX_CLASSES}]); choose {Metric.SQNR_DB.value} or {Metric.COSINE.value}."
    )
