"""Uploaded sample files, checked against a model's inputs and converted to one layout.

Element types must be the model's, with one exception: a float may stand for a float of another size, and an
integer for an integer of another size, where every value fits the model's type (float64 arrays are what numpy
makes unless told otherwise). Rounding is accepted, overflow is refused, and integers never become floats:
pixels that were not scaled as in training would calibrate the wrong model.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidSamplesError
from engines.model.naming import quote
from engines.model.tensors import TensorSpec
from engines.samples.files import StoredArray, open_arrays
from engines.samples.sample_set import (
    INDEX,
    SampleSet,
    SampleView,
    Segment,
    Splits,
    stored_dtype,
    write_index,
)

__all__ = ["MAX_SAMPLE_BYTES", "SampleSet", "SampleView", "Segment", "Splits", "import_samples"]

MAX_SAMPLE_BYTES = 16 * 2**30
"""Size of all samples together, unpacked."""


def import_samples(
    files: Sequence[Path],
    inputs: tuple[TensorSpec, ...],
    folder: Path,
    *,
    max_bytes: int = MAX_SAMPLE_BYTES,
) -> SampleSet:
    """Checks .npz, .npy and .safetensors files and writes their rows to `folder`, a few megabytes at a time.

    An .npz or .safetensors has one array per input, of its name; an .npy will do where the model has one input.
    The batch axis may have any size, also where the model's is fixed. Files may differ in the dimensions that the
    model leaves free. What an earlier import left in `folder` is replaced.

    Raises:
        InvalidSamplesError: a file is broken or hostile, or an array does not fit the model: name, type,
            shape, number of rows, values that are not finite.
    """
    if not files:
        raise InvalidSamplesError(
            "no sample files were given: upload at least one .npz with a row per sample."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("[0-9]*-[0-9]*.npy"), folder / INDEX):
        stale.unlink(missing_ok=True)
    segments: list[tuple[int, list[str]]] = []
    left_bytes = max_bytes
    for number, path in enumerate(files):
        with open_arrays(path) as arrays:
            matched = _match(path.name, arrays, inputs)
            rows = _check_shapes(path.name, matched, inputs)
            left_bytes -= sum(array.stored_bytes for array in matched.values())
            if left_bytes < 0:
                raise InvalidSamplesError(
                    f"the samples take more than {max_bytes} bytes unpacked, the most that octet reads:"
                    f" upload fewer rows (the limit was passed in {quote(path.name)})."
                )
            names = [f"{number:06d}-{place:03d}.npy" for place in range(len(inputs))]
            for spec, name in zip(inputs, names, strict=True):
                _convert(path.name, matched[spec.name], spec, folder / name)
        segments.append((rows, names))
    write_index(folder, inputs, segments)
    return SampleSet.open(folder)


def _match(
    file: str, arrays: tuple[StoredArray, ...], inputs: tuple[TensorSpec, ...]
) -> Mapping[str, StoredArray]:
    expected = [spec.name for spec in inputs]
    if len(arrays) == 1 and not arrays[0].name:
        if len(inputs) > 1:
            raise InvalidSamplesError(
                f"the sample file {quote(file)} is a single .npy array, but the model has {len(inputs)}"
                f" inputs ({_list(expected)}): save them in one .npz with np.savez."
            )
        return {inputs[0].name: arrays[0]}
    found = {array.name: array for array in arrays}
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        seen = f"it holds {_list(list(found))}" if found else "it is empty"
        raise InvalidSamplesError(
            f"the sample file {quote(file)} has no array for the model's input {_list(missing)}; {seen}: name"
            f" the arrays as the inputs, {_list(expected)}."
        )
    if extra:
        raise InvalidSamplesError(
            f"the sample file {quote(file)} holds {_list(extra)}, which the model has no input for: leave"
            f" only {_list(expected)}."
        )
    return found


def _check_shapes(file: str, arrays: Mapping[str, StoredArray], inputs: tuple[TensorSpec, ...]) -> int:
    """Checks types and shapes against the model, and returns the number of rows."""
    for spec in inputs:
        array = arrays[spec.name]
        where = f"input {quote(spec.name)} in the sample file {quote(file)}"
        taken = _sizes((None, *spec.item_shape))
        seen = _sizes(array.shape)
        if len(array.shape) != len(spec.shape):
            hint = (
                "add the batch axis (x[None] for one row)" if array.shape == spec.item_shape else "reshape it"
            )
            raise InvalidSamplesError(
                f"{where} has {len(array.shape)} dimensions {seen}, but the model takes {len(spec.shape)}"
                f" {taken}: {hint}."
            )
        if any(want not in (None, size) for want, size in zip(spec.item_shape, array.shape[1:], strict=True)):
            raise InvalidSamplesError(
                f"{where} has the shape {seen}, but the model takes {taken}, rows along axis 0: reshape or"
                " resize it."
            )
        if 0 in array.shape:
            what = "no rows" if array.shape[0] == 0 else "a dimension of size 0"
            raise InvalidSamplesError(
                f"{where} has {what} (shape {seen}): save at least one row with values."
            )
        if not _convertible(array.dtype, spec.dtype):
            raise InvalidSamplesError(
                f"{where} has the element type {array.dtype.name}, but the model takes {spec.dtype.name}:"
                f" convert it with .astype({_type_in_python(spec.dtype)})."
            )
    rows = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        seen = ", ".join(f"{quote(name)} {count}" for name, count in rows.items())
        raise InvalidSamplesError(
            f"the arrays in the sample file {quote(file)} have different numbers of rows along axis 0"
            f" ({seen}): save the same samples of every input."
        )
    return rows[inputs[0].name]


def _convert(file: str, array: StoredArray, spec: TensorSpec, target: Path) -> None:
    """Writes the array as a .npy in C order and the model's type, and checks its values."""
    where = f"input {quote(spec.name)} in the sample file {quote(file)}"
    row_elements = math.prod(array.shape[1:])
    stored = stored_dtype(spec.dtype)
    done, bad, first_bad = 0, 0, 0
    with target.open("wb") as out:
        header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(out, header)
        for block in array.blocks(target.parent):
            values = block.view(spec.dtype) if block.dtype.kind == "V" else block
            if _is_float(values.dtype):
                wrong = np.flatnonzero(~np.isfinite(values))
                if len(wrong) and not bad:
                    first_bad = (done + int(wrong[0])) // row_elements
                bad += len(wrong)
            out.write(_cast(values, spec.dtype, where).view(stored).data)
            done += len(values)
    if bad:
        raise InvalidSamplesError(
            f"{where} holds {bad} values that are NaN or infinite, the first in row {first_bad}: repair or"
            " remove those rows."
        )


def _cast(values: NDArray[Any], dtype: np.dtype[np.generic], where: str) -> NDArray[Any]:
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    if _is_float(dtype):
        fits = np.isfinite(cast) | ~np.isfinite(values)
    else:
        bounds = np.iinfo(dtype.str)
        fits = (values >= bounds.min) & (values <= bounds.max)
    if not fits.all():
        value = values[np.argmin(fits)]
        raise InvalidSamplesError(
            f"{where} holds {value}, which does not fit the model's type {dtype.name}: check the values and"
            f" convert them with .astype({_type_in_python(dtype)})."
        )
    return cast


def _convertible(have: np.dtype[np.generic], want: np.dtype[np.generic]) -> bool:
    if have.kind == "V":
        return bool(want == ml_dtypes.bfloat16)
    same = have.newbyteorder("=") == want
    return same or (_is_float(have) and _is_float(want)) or (have.kind in "iu" and want.kind in "iu")


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def _type_in_python(dtype: np.dtype[np.generic]) -> str:
    return f"{'ml_dtypes' if dtype == ml_dtypes.bfloat16 else 'np'}.{dtype.name}"


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _list(names: list[str]) -> str:
    shown = ", ".join(quote(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
