"""Checked samples on disk, cut into splits and batches.

Layout of a folder: one uncompressed .npy per uploaded file and input, and `index.json`, written last.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.errors import InvalidArtifactError
from engines.model.tensors import Array, TensorSpec

INDEX = "index.json"
_FORMAT = 1
_SEED = 0x6F63746574
_LEAST_ROWS_TO_SPLIT = 4


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """An array in a .npy file, rows along axis 0.

    Rows are read where they are asked for. Mapped into memory, every page that was ever touched would count as this
    process's until the file is closed: a build's memory would grow with its samples.
    """

    path: Path
    # Where the first row starts.
    offset_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def read(self, numbers: NDArray[np.int64]) -> Array:
        """Copies of the rows of these numbers, in this order.

        Raises:
            InvalidArtifactError: the file has become shorter.
        """
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        rows = found.reshape(len(numbers), -1).view(np.uint8)
        row_bytes = rows.shape[1]
        with self.path.open("rb", buffering=0) as file:
            for row, number in zip(rows, numbers.tolist(), strict=True):
                file.seek(self.offset_bytes + number * row_bytes)
                if file.readinto(row.data) != row_bytes:
                    raise InvalidArtifactError(
                        f"the stored samples {self.path.name!r} end before row {number}: import the uploaded samples "
                        "again."
                    )
        return found


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The rows of one uploaded file: all of one shape."""

    rows: int
    # One array per input.
    arrays: Mapping[str, StoredRows]

    @property
    def item_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one row of each input."""
        return tuple(array.shape[1:] for array in self.arrays.values())


class SampleSet:
    """All uploaded rows, numbered from 0 in upload order."""

    def __init__(self, inputs: tuple[TensorSpec, ...], segments: tuple[Segment, ...]) -> None:
        self.inputs = inputs
        self.segments = segments
        self.rows = sum(segment.rows for segment in segments)
        self._starts = np.cumsum([0, *(segment.rows for segment in segments)])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the samples that `import_samples` wrote to `folder`.

        Raises:
            InvalidArtifactError: the folder is incomplete, or its files are not what its index says.
        """
        try:
            index = json.loads((folder / INDEX).read_bytes())
            inputs, segments = _read_index(folder, index)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArtifactError(
                f"the stored samples cannot be read ({error}): import the uploaded samples again."
            ) from error
        return cls(inputs, segments)

    def split(self) -> "Splits":
        """Cuts the rows in three: about a half to calibrate, a quarter to tune, a quarter to verify.

        Which row goes where depends on the row's number and the number of rows alone: not on the files, nor
        on the machine. Rows are ordered by SplitMix64 of their numbers (Steele, Lea, Flood 2014), because
        numpy's generators promise no stable stream over releases. With fewer than four rows every split has
        all of them.
        """
        numbers = np.arange(self.rows)
        if self.rows < _LEAST_ROWS_TO_SPLIT:
            everything = SampleView(self, numbers)
            return Splits(calibrate=everything, tune=everything, verify=everything, disjoint=False)
        order = np.argsort(_split_mix(numbers), kind="stable")
        quarter = self.rows // 4
        views = (SampleView(self, np.sort(part)) for part in np.split(order, [quarter, 2 * quarter]))
        verify, tune, calibrate = views
        return Splits(calibrate=calibrate, tune=tune, verify=verify, disjoint=True)

    def gather(self, numbers: NDArray[np.int64]) -> dict[str, Array]:
        """Copies of the rows of these numbers, which must be of one shape; rows along axis 0."""
        owners = self.owners(numbers)
        first = self.segments[owners[0]]
        feeds = {
            name: np.empty((len(numbers), *array.shape[1:]), array.dtype)
            for name, array in first.arrays.items()
        }
        for owner in np.unique(owners):
            mine = owners == owner
            for name, array in self.segments[owner].arrays.items():
                feeds[name][mine] = array.read(numbers[mine] - self._starts[owner])
        return feeds

    def owners(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row number the segment that holds it."""
        return np.searchsorted(self._starts, numbers, side="right") - 1


class SampleView:
    """Some rows of a set, in the order of their numbers."""

    def __init__(self, samples: SampleSet, numbers: NDArray[np.int64]) -> None:
        self.numbers = numbers
        self.rows = len(numbers)
        self._samples = samples

    def batches(self, rows: int, *, whole: bool = False) -> Iterator[dict[str, Array]]:
        """Batches of at most `rows` rows in canonical order, each of one shape and owned by the caller.

        Shapes come in the order in which they first appear, and the rows of one shape in the order of their
        numbers, so the same rows give the same batches bit for bit however they were cut into files.

        `whole` fills the last batch of each shape by repeating its last row, for models of a fixed batch:
        `batch_rows` tells how many rows of each batch are real.

        Raises:
            ValueError: `rows` is less than 1.
        """
        for numbers in self._chunks(rows):
            filler = numbers[-1:].repeat(rows - len(numbers) if whole else 0)
            yield self._samples.gather(np.concatenate([numbers, filler]))

    def batch_rows(self, rows: int) -> tuple[int, ...]:
        """The number of samples in each of the batches that `batches(rows)` yields, fillers not counted."""
        return tuple(len(numbers) for numbers in self._chunks(rows))

    def batch_numbers(self, rows: int) -> tuple[NDArray[np.int64], ...]:
        """The row numbers in each of the batches that `batches(rows)` yields, fillers not counted."""
        return tuple(self._chunks(rows))

    def _chunks(self, rows: int) -> Iterator[NDArray[np.int64]]:
        if rows < 1:
            raise ValueError(f"a batch has at least one row, not {rows}.")
        owners = self._samples.owners(self.numbers)
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for owner in dict.fromkeys(owners.tolist()):
            groups.setdefault(self._samples.segments[owner].item_shapes, []).append(owner)
        for members in groups.values():
            numbers = self.numbers[np.isin(owners, members)]
            for start in range(0, len(numbers), rows):
                yield numbers[start : start + rows]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three uses of samples."""

    # Statistics of activations.
    calibrate: SampleView
    # Every choice that looks at accuracy.
    tune: SampleView
    # The proof; nothing is ever chosen on it.
    verify: SampleView
    # False where there were too few rows, so that all three are the same: weak evidence.
    disjoint: bool


def stored_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type under which a .npy keeps values of `dtype`: bfloat16 has none of its own there."""
    return np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else dtype


def write_index(folder: Path, inputs: tuple[TensorSpec, ...], segments: list[tuple[int, list[str]]]) -> None:
    """Writes the index atomically; each segment is its number of rows and a file name per input."""
    index = {
        "format": _FORMAT,
        "inputs": [{"name": s.name, "dtype": s.dtype.name, "shape": s.shape} for s in inputs],
        "segments": [{"rows": rows, "files": files} for rows, files in segments],
    }
    draft = folder / f"{INDEX}.draft"
    draft.write_text(json.dumps(index, indent=1), encoding="utf-8")
    draft.replace(folder / INDEX)


def _read_index(folder: Path, index: dict[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[Segment, ...]]:
    if index["format"] != _FORMAT:
        raise ValueError(f"format {index['format']}")
    inputs = tuple(_read_spec(entry) for entry in index["inputs"])
    return inputs, tuple(_read_segment(folder, entry, inputs) for entry in index["segments"])


def _read_spec(entry: dict[str, Any]) -> TensorSpec:
    name = entry["dtype"]
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return TensorSpec(name=entry["name"], dtype=dtype, shape=tuple(entry["shape"]))


def _read_segment(folder: Path, entry: dict[str, Any], inputs: tuple[TensorSpec, ...]) -> Segment:
    arrays: dict[str, StoredRows] = {}
    for spec, name in zip(inputs, entry["files"], strict=True):
        path = folder / Path(name).name
        # Only looked at: where the rows start, and that the file is as long as it says.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            mapped.dtype != stored_dtype(spec.dtype)
            or len(mapped) != entry["rows"]
            or not math.prod(mapped.shape)
        ):
            raise ValueError(f"{name} holds {mapped.dtype.name} {list(mapped.shape)}")
        arrays[spec.name] = StoredRows(
            path=path, offset_bytes=mapped.offset, shape=mapped.shape, dtype=spec.dtype
        )
    return Segment(rows=entry["rows"], arrays=arrays)


def _split_mix(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    z = np.uint64(_SEED) + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
