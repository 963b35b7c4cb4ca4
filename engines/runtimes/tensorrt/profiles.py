"""Which shapes an engine takes: TensorRT compiles for a range of each dimension, and refuses what lies outside."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.errors import InvalidOptionsError
from engines.model.tensors import TensorSpec
from engines.options import ShapeProfile

LEAST_ROWS = 32
"""An engine takes at least so many rows, whatever the batching: proofs and tuning run batches of up to this size."""
FREE_SIZES = (1, 128, 512)
"""Least, usual and largest size of a free dimension beside the batch, where the build's `profile` says nothing."""


@dataclass(frozen=True, kw_only=True)
class ShapeLimits:
    """Which shapes engines are compiled for."""

    # The largest batch that the batching allows.
    max_rows: int = LEAST_ROWS
    # What the build's `profile` says, by input.
    profile: Mapping[str, ShapeProfile] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes of one input; equal sizes are fixed dimensions."""

    least: tuple[int, ...]
    # The shape that kernels are chosen for.
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def contains(self, shape: tuple[int, ...]) -> bool:
        """Whether the engine takes an input of this shape."""
        return all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.largest, strict=True)
        )

    def describe(self) -> str:
        """For messages: `[1 to 32, 128]`."""
        sides = zip(self.least, self.largest, strict=True)
        return f"[{', '.join(str(low) if low == high else f'{low} to {high}' for low, high in sides)}]"


def shape_ranges(inputs: tuple[TensorSpec, ...], limits: ShapeLimits) -> dict[str, ShapeRange]:
    """The range of every input of a model.

    Raises:
        InvalidOptionsError: the profile does not fit the model.
    """
    known = {spec.name: spec for spec in inputs}
    asked = limits.profile
    for name, profile in asked.items():
        if name not in known:
            raise InvalidOptionsError(
                f"option 'profile' names the input {name!r}; the model reads {', '.join(known)}."
            )
        _check(known[name], profile)
    return {
        name: _asked(asked[name]) if name in asked else _default(spec, limits.max_rows)
        for name, spec in known.items()
    }


def _check(spec: TensorSpec, profile: ShapeProfile) -> None:
    for word, shape in (("min", profile.min), ("opt", profile.opt), ("max", profile.max)):
        if not spec.accepts(shape):
            raise InvalidOptionsError(
                f"option 'profile' gives {spec.name!r} the {word} {list(shape)}; the model reads {spec.describe()}."
            )


def _asked(profile: ShapeProfile) -> ShapeRange:
    return ShapeRange(least=profile.min, usual=profile.opt, largest=profile.max)


def _default(spec: TensorSpec, max_rows: int) -> ShapeRange:
    rows = (1, max_rows, max(max_rows, LEAST_ROWS))
    sides = [
        (size,) * 3 if size is not None else rows if axis == 0 else FREE_SIZES
        for axis, size in enumerate(spec.shape)
    ]
    least, usual, largest = zip(*sides, strict=True) if sides else ((), (), ())
    return ShapeRange(least=least, usual=usual, largest=largest)
