"""How far an engine's outputs are from FP32's, without labels.

Floating outputs, with reference r and candidate c:

    SQNR = 10 log10(sum r^2 / sum (r - c)^2) dB, over all elements of all rows
    row SQNR = the same of one row, whose signal counts as at least a tenth of the mean row's: a row of nearly nothing
        is not held to more digits than its neighbours
    variation SQNR = the same with the signal that is left when each element's mean over all rows of one shape is
        taken away: 0 dB is what a constant answer reaches at best
    cosine = mean over rows of r.c / (|r| |c|)
    top-1 agreement = share of rows in which the candidate's highest class is one that FP32 ranks highest, for
        outputs that look like class scores: floats of rank 2 with 2 to 100,000 columns
    weighted top-1 agreement = 1 - mean over rows of what flips give away (engines.fidelity.class_scores)

Other outputs (integers, bool) are right or wrong, element by element: `equal_share`. A metric counts them only
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
from engines.fidelity.class_scores import MAX_CLASSES, are_classes, flips
from engines.fidelity.confidence import mean_lower, ratio_db_slack
from engines.fidelity.variation import Variation
from engines.model.tensors import Array, TensorSpec
from engines.options import Metric

BEST_DB = 200.0
"""Stands for no noise at all (and its negative for a signal that is lost), so that reports stay finite."""
ZERO_PEAK = 1e-6
"""An output that stays within this throughout is silent: rounding may leave as much of a sum that should be zero."""
_LOW_PERCENTILE = 5.0
_LEAST_SIGNAL_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class OutputAccuracy:
    """One output against FP32. Fields that make no sense for its type are None."""

    name: str
    rows: int
    sqnr_db: float | None = None
    # What the SQNR of more such rows is at least, with 95% confidence.
    sqnr_lower_db: float | None = None
    # The row SQNR that 95% of the rows exceed.
    row_sqnr_p5_db: float | None = None
    # None where FP32's answers hardly vary over the rows, or the rows are fewer than 8.
    variation_sqnr_db: float | None = None
    cosine: float | None = None
    cosine_lower: float | None = None
    max_abs_error: float | None = None
    # Largest finite magnitude of FP32's answers.
    peak: float | None = None
    top1_agreement: float | None = None
    top1_weighted: float | None = None
    # Of outputs that are not floating.
    equal_share: float | None = None
    # Of those outputs: how many elements were compared.
    elements: int = 0
    # Elements that are NaN or infinite where FP32's are not the same.
    nonfinite: int = 0

    @property
    def silent(self) -> bool:
        """Whether FP32's answers are zero throughout, so that a ratio to them has no meaning."""
        return self.peak is not None and self.peak <= ZERO_PEAK

    def value(self, metric: Metric) -> float | None:
        """The metric of this output, or None where it has none; elements that are not finite make it the worst."""
        share = self.equal_share
        if metric is Metric.EQUAL_SHARE:
            return share
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
        counted = self.outputs if metric is Metric.EQUAL_SHARE else floating or self.outputs
        found = [value for output in counted if (value := output.value(metric)) is not None]
        if not found:
            raise InvalidOptionsError(_no_metric(metric))
        return min(found)


def check_metric(metric: Metric | None, outputs: Iterable[TensorSpec]) -> None:
    """Checks that a contract in `metric`, or the default one, can be held against a model of these outputs.

    Raises:
        InvalidOptionsError: it cannot.
    """
    specs = tuple(outputs)
    floating = [spec for spec in specs if np.issubdtype(spec.dtype, np.floating)]
    if metric is Metric.TOP1_AGREEMENT:
        fits = not floating or any(
            are_classes(len(s.shape), s.shape[1]) for s in floating if len(s.shape) > 1
        )
    else:
        fits = metric is not Metric.EQUAL_SHARE or len(floating) < len(specs)
    if metric is not None and not fits:
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
                raise EngineRunError(_unlike(name, right, found))
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
        # One array of each for every batch, shape [rows].
        self._signal: list[NDArray[np.float64]] = []
        self._noise: list[NDArray[np.float64]] = []
        self._cosines: list[NDArray[np.float64]] = []
        self._flipped: list[NDArray[np.bool_]] = []
        self._given_away: list[NDArray[np.float64]] = []
        self._variation = Variation()
        self._max_abs_error = 0.0
        self._peak = 0.0
        self._nonfinite = 0

    def add(self, reference: Array, candidate: Array) -> None:
        right, found = _rows(reference), _rows(candidate)
        if np.isnan(right).any():
            raise CalibrationError(
                f"the FP32 model itself answers NaN in output {self._name!r}, so no engine can be compared with "
                "it; check the model with these samples."
            )
        if are_classes(reference.ndim, right.shape[1]):
            flipped, given_away = flips(right, found)
            self._flipped.append(flipped)
            self._given_away.append(given_away)
        same_infinity = np.isinf(right) & (right == found)
        broken = ~same_infinity & ~(np.isfinite(right) & np.isfinite(found))
        self._nonfinite += int(broken.sum())
        left_out = same_infinity | broken
        right, found = np.where(left_out, 0.0, right), np.where(left_out, 0.0, found)
        error = right - found
        self._signal.append((right**2).sum(axis=1))
        self._noise.append((error**2).sum(axis=1))
        self._variation.add(right, error, reference.shape[1:])
        self._max_abs_error = max(self._max_abs_error, float(np.abs(error).max(initial=0.0)))
        self._peak = max(self._peak, float(np.abs(right).max(initial=0.0)))
        self._cosines.append(_cosines(right, found))

    def result(self, name: str) -> OutputAccuracy:
        signal, noise = np.concatenate(self._signal), np.concatenate(self._noise)
        cosines = np.concatenate(self._cosines)
        rows = len(signal)
        sqnr_db = to_db(float(signal.sum()), float(noise.sum()))
        slack_db = ratio_db_slack(signal, noise)
        classes = bool(self._flipped) and rows > 0
        agreeing = rows - sum(int(flipped.sum()) for flipped in self._flipped)
        varied = self._variation.energies()
        return OutputAccuracy(
            name=name,
            rows=rows,
            sqnr_db=sqnr_db,
            sqnr_lower_db=None if slack_db is None else max(-BEST_DB, sqnr_db - slack_db),
            row_sqnr_p5_db=float(np.percentile(_row_sqnr_db(signal, noise), _LOW_PERCENTILE))
            if rows
            else None,
            variation_sqnr_db=None if varied is None else to_db(*varied),
            cosine=float(cosines.mean()) if rows else None,
            cosine_lower=mean_lower(cosines),
            max_abs_error=self._max_abs_error,
            peak=self._peak,
            top1_agreement=agreeing / rows if classes else None,
            top1_weighted=1.0 - float(np.concatenate(self._given_away).mean()) if classes else None,
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
        share = self._equal / self._elements if self._elements else 1.0
        return OutputAccuracy(name=name, rows=self._rows, equal_share=share, elements=self._elements)


def _is_floating(array: Array) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def _rows(array: Array) -> NDArray[np.float64]:
    return array.reshape(len(array), math.prod(array.shape[1:])).astype(np.float64)


def _row_sqnr_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    least = _LEAST_SIGNAL_SHARE * signal.mean()
    return np.array([to_db(max(s, least), n) for s, n in zip(signal.tolist(), noise.tolist(), strict=True)])


def _unlike(name: str, right: Array, found: Array | None) -> str:
    if found is None:
        return f"output {name!r} is missing; FP32 gives {list(right.shape)} for the same batch."
    seen = f"output {name!r} has the shape {list(found.shape)}; FP32 gives {list(right.shape)} for the same batch."
    if found.ndim != right.ndim:
        return seen
    return (
        f"{seen} Where the number of results depends on the data (NonMaxSuppression, NonZero), end the model before "
        "that step and take it on the engine's answers."
    )


def _cosines(right: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each row; two rows of zeros point the same way, a row of zeros and another do not."""
    lengths = np.linalg.norm(right, axis=1), np.linalg.norm(found, axis=1)
    product = lengths[0] * lengths[1]
    same = (lengths[0] == 0) & (lengths[1] == 0)
    dots = np.einsum("ij,ij->i", right, found)
    return np.where(same, 1.0, np.divide(dots, product, out=np.zeros_like(dots), where=product > 0))


def _no_metric(metric: Metric) -> str:
    if metric is Metric.EQUAL_SHARE:
        return (
            f"the contract is in {metric.value}, but every output of the model is floating; choose "
            f"{Metric.SQNR_DB.value} or {Metric.COSINE.value}."
        )
    return (
        f"the contract is in {metric.value}, but no output of the model looks like class scores "
        f"(floats of shape [rows, 2 to {MAX_CLASSES}]); choose {Metric.SQNR_DB.value} or {Metric.COSINE.value}."
    )
