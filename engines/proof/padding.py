"""Whether rows of different lengths may share a batch, the shorter ones padded.

Models of text, sound and other sequences take a mask that says which places count. Where the mask is zero in the
padding, nothing that stands there should matter. Which input is the mask, and that it works, is tried rather than
taken from names: rows are cut to different lengths and run alone, then together, padded to the longest, once with
zeros behind their ends and once with what other rows have there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from engines.model.tensors import Array, TensorSpec
from engines.proof.company import Run, alike

NO_LENGTH = "no input has a free length"
"""Why rows of most models are not padded: there is nothing to pad."""
TRIAL_LENGTHS = 8
"""Rows of a trial, each cut to a length of its own."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How rows of different lengths share a batch: every input is padded with zeros at its end."""

    # The input that is 1 where a row has a place and 0 in the padding.
    mask: str
    # The axis of each input that is as long as the row, axis 0 being the batch; inputs without one are not here.
    inputs: Mapping[str, int]
    # Likewise of each output, which is cut to the row's own length.
    outputs: Mapping[str, int]
    # The longest row that was tried; longer ones are not padded.
    longest: int

    def length_of(self, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """The length of rows in inputs of these shapes; None where the inputs do not agree."""
        lengths = {shapes[name][axis] for name, axis in self.inputs.items()}
        return lengths.pop() if len(lengths) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """For the header of a proof."""
        return asdict(self)

    @classmethod
    def of_json(cls, found: Mapping[str, Any] | str) -> Self | str:
        """What `to_json` gave; a text says why rows are not padded."""
        return found if isinstance(found, str) else cls(**found)


def prove_padding(
    run: Run, inputs: Sequence[TensorSpec], rows: Mapping[str, Array], *, least_db: float
) -> Padding | str:
    """How rows may be padded, or why they may not, in one sentence without its end.

    Args:
        run: runs one batch of any size and length.
        inputs: the model's.
        rows: rows of one length, the longest that there are.
        least_db: energy of a row's answer, in decibels, above the energy of what padding may change.

    Raises:
        EngineRunError: the model does not run rows that were cut.
    """
    axes = _length_axes(inputs)
    if isinstance(axes, str):
        return axes
    lengths = {rows[name].shape[axis] for name, axis in axes.items()}
    if len(lengths) > 1:
        return f"the inputs have different lengths, {sorted(lengths)}"
    longest = lengths.pop()
    masks = [name for name in axes if _is_mask(rows[name])]
    if not masks:
        return "no input that goes along with the length is a mask of zeros and ones"
    trial = _Trial(run, axes, rows, longest)
    why = ""
    for mask in masks:
        padding = Padding(mask=mask, inputs=axes, outputs=trial.outputs, longest=longest)
        found = trial.harm(padding, least_db)
        if found is None:
            return padding
        why = why or found
    return why


def padding_harm(run: Run, padding: Padding, rows: Mapping[str, Array], *, least_db: float) -> str | None:
    """Why an engine may not run padded rows although the padding was proven on FP32; None where it may.

    Raises:
        EngineRunError: the engine does not run rows that were cut.
    """
    trial = _Trial(run, padding.inputs, rows, padding.longest)
    return trial.harm(padding, least_db)


class _Trial:
    """Rows cut to different lengths, and what each answers alone."""

    def __init__(self, run: Run, axes: Mapping[str, int], rows: Mapping[str, Array], longest: int) -> None:
        self._run = run
        self._axes = axes
        count = len(next(iter(rows.values())))
        self._rows = {name: array[np.arange(TRIAL_LENGTHS) % count] for name, array in rows.items()}
        self._lengths = [max(1, longest * (number + 1) // TRIAL_LENGTHS) for number in range(TRIAL_LENGTHS)]
        self._alone = [self._answer_alone(number) for number in range(TRIAL_LENGTHS)]
        self.outputs = {
            name: axis
            for name, array in self._alone[-1].items()
            if (axis := _changed_axis(self._alone[0][name].shape, array.shape)) is not None
        }

    def harm(self, padding: Padding, least_db: float) -> str | None:
        """In what a row's answer differs from the one that it has alone."""
        for what, others in (
            ("zeros", None),
            ("what other rows have there", np.roll(np.arange(TRIAL_LENGTHS), 1)),
        ):
            answers = self._run(self._padded(padding.mask, others))
            for name in self._alone[0]:
                if len(answers[name]) != TRIAL_LENGTHS:
                    return f"output {name!r} has {len(answers[name])} rows for {TRIAL_LENGTHS} rows of input"
                for number, length in enumerate(self._lengths):
                    own = answers[name][number : number + 1]
                    if name in padding.outputs:
                        own = own[_until(length, padding.outputs[name])]
                    alone = self._alone[number][name]
                    if own.shape != alone.shape or not alike(alone, own, alone, least_db):
                        return f"a row's {name!r} changes when it is padded with {what}, {padding.mask!r} being 0"
        return None

    def _answer_alone(self, number: int) -> Mapping[str, Array]:
        until = {name: _until(self._lengths[number], axis) for name, axis in self._axes.items()}
        row = {name: array[number : number + 1] for name, array in self._rows.items()}
        return dict(
            self._run(
                {name: np.ascontiguousarray(array[until.get(name, ...)]) for name, array in row.items()}
            )
        )

    def _padded(self, mask: str, others: Any) -> dict[str, Array]:
        """All rows in one batch; behind the end of each stands nothing, or what the rows `others` have there."""
        feeds = {name: array.copy() for name, array in self._rows.items()}
        for name, axis in self._axes.items():
            array = feeds[name]
            for number, length in enumerate(self._lengths):
                beyond: tuple[Any, ...] = (
                    number,
                    *(slice(None) for _ in range(axis - 1)),
                    slice(length, None),
                )
                strangers = name != mask and others is not None
                array[beyond] = self._rows[name][others][beyond] if strangers else 0
        return feeds


def _length_axes(inputs: Sequence[TensorSpec]) -> dict[str, int] | str:
    axes = {}
    for spec in inputs:
        free = [axis for axis, size in enumerate(spec.shape) if axis and size is None]
        if len(free) > 1:
            return f"input {spec.name!r} has {len(free)} free dimensions beside the batch"
        if free:
            axes[spec.name] = free[0]
    return axes or NO_LENGTH


def _is_mask(array: Array) -> bool:
    values = np.unique(array)
    return bool(np.isin(values, (0, 1)).all() and (values == 1).any())


def _until(length: int, axis: int) -> tuple[slice, ...]:
    """An index that keeps the first `length` places of an axis."""
    return (*(slice(None) for _ in range(axis)), slice(length))


def _changed_axis(short: tuple[int, ...], long: tuple[int, ...]) -> int | None:
    """The first axis in which two shapes differ."""
    return next((axis for axis, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), None)
