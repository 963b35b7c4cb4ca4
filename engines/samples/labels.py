"""Labels of the samples: with them, the report has the engines' accuracies beside what needs no labels.

They are optional and decide nothing: a contract is kept or missed without them. A model is taken for a classifier
where exactly one output may hold class scores, or where none does and exactly one holds an integer per row.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidSamplesError
from engines.fidelity.class_scores import are_classes
from engines.fidelity.confidence import Interval, paired_difference, wilson_interval
from engines.model.tensors import Array, TensorSpec
from engines.proof.proof import Proof
from engines.reports.report import IntervalReport, TaskReport
from engines.runtimes.base import Engine
from engines.samples.files import open_arrays
from engines.samples.sample_set import SampleView


def class_output(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """The output that labels are about.

    Raises:
        InvalidSamplesError: none or several may be.
    """
    scores = [
        spec
        for spec in outputs
        if np.issubdtype(spec.dtype, np.floating) and len(spec.shape) == 2 and are_classes(2, spec.shape[1])
    ]
    picked = [spec for spec in outputs if spec.dtype.kind in "iu" and spec.shape[1:] in ((), (1,))]
    candidates = scores or picked
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(repr(spec.name) for spec in candidates)
        raise InvalidSamplesError(
            f"labels were uploaded, but several outputs may hold the classes ({names}): export the model with one of "
            "them, or leave the labels out."
        )
    seen = ", ".join(spec.describe() for spec in outputs)
    raise InvalidSamplesError(
        f"labels were uploaded, but no output of the model looks like class scores (floats of shape [rows, classes]); "
        f"its outputs are {seen}: leave the labels out."
    )


def read_labels(path: Path, rows: int, output: TensorSpec) -> NDArray[np.int64]:
    """The class of each sample, shape [rows].

    Args:
        path: a .npy file, which nobody vouches for.
        rows: how many samples there are.
        output: the output that the labels are about.

    Raises:
        InvalidSamplesError: it is no .npy of integers, one for each row, within the output's classes.
    """
    with open_arrays(path) as arrays:
        if len(arrays) != 1 or arrays[0].name:
            raise InvalidSamplesError(
                f"the labels are an .npz of {len(arrays)} arrays: save the one array of classes with np.save."
            )
        array = arrays[0]
        if array.dtype.kind not in "iu":
            raise InvalidSamplesError(
                f"the labels have the element type {array.dtype.name}: save the classes' numbers as integers, for "
                "example with labels.astype(np.int64)."
            )
        if array.shape not in ((rows,), (rows, 1)):
            raise InvalidSamplesError(
                f"the labels have the shape {list(array.shape)}, but there are {rows} samples: save one class for "
                f"each row of all samples, in the order of the upload, as shape [{rows}]."
            )
        values = np.concatenate(list(array.blocks(path.parent)))
    classes = output.shape[1] if len(output.shape) == 2 and output.dtype.kind == "f" else None
    outside = (values < 0) | (values >= (np.iinfo(np.int64).max if classes is None else classes))
    if outside.any():
        row = int(outside.argmax())
        known = f"0 to {classes - 1}" if classes else "0 or more"
        raise InvalidSamplesError(
            f"the label of row {row} is {values[row]}, but the classes of output {output.name!r} are {known}: number "
            "the classes as the model does."
        )
    return values.astype(np.int64)


def answered_right(
    proof: Proof,
    verify: SampleView,
    labels: NDArray[np.int64],
    output: TensorSpec,
    engine: Engine | None = None,
) -> NDArray[np.bool_]:
    """Which of the proof's rows an engine answers with their label, shape [proof rows]; FP32 where there is none.

    Args:
        proof: of the rows of `verify`.
        verify: the rows that the proof was sealed from.
        labels: of all samples.
        output: the one that holds the classes.
        engine: one that has replayed the proof.

    Raises:
        InvalidSamplesError: the output does not have a row for each sample.
        EngineRunError: the engine fails.
    """
    found = []
    numbers = verify.batch_numbers(proof.batches[0].size)
    # A proof may hold fewer batches than there are rows for.
    for batch, rows in zip(proof.batches, numbers, strict=False):
        answers = (batch.outputs if engine is None else engine.run(batch.inputs))[output.name]
        if len(answers) != batch.size:
            raise InvalidSamplesError(
                f"labels were uploaded, but output {output.name!r} has {len(answers)} rows for {batch.size} samples: "
                "leave the labels out."
            )
        found.append(_classes(answers[: batch.rows]) == labels[rows])
    return np.concatenate(found)


def task_report(output: str, fp32: NDArray[np.bool_], quantized: NDArray[np.bool_] | None) -> TaskReport:
    """Both engines' accuracies from which rows they have right; `quantized` is None where that engine did not run."""
    rows, fp32_top1 = len(fp32), float(fp32.mean())
    report = TaskReport(
        output=output,
        rows=rows,
        fp32_top1=fp32_top1,
        fp32_interval=_interval(wilson_interval(fp32_top1, rows)),
    )
    if quantized is None:
        return report
    gained, lost = int((quantized & ~fp32).sum()), int((fp32 & ~quantized).sum())
    return report.model_copy(
        update={
            "quantized_top1": float(quantized.mean()),
            "quantized_interval": _interval(wilson_interval(float(quantized.mean()), rows)),
            "gained_rows": gained,
            "lost_rows": lost,
            "difference": (gained - lost) / rows,
            "difference_interval": _interval(paired_difference(gained, lost, rows)),
        }
    )


def _classes(answers: Array) -> NDArray[np.int64]:
    """The class that each row picks; -1, which is no label, where a row holds NaN."""
    if answers.dtype.kind in "iu":
        return answers.reshape(len(answers)).astype(np.int64)
    scores = answers.astype(np.float64)
    broken = np.isnan(scores).any(axis=1)
    return np.where(broken, -1, np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1))


def _interval(interval: Interval) -> IntervalReport:
    return IntervalReport(low=interval.low, high=interval.high)
