"""The range of shapes that an engine is compiled for."""

import numpy as np
import pytest

from engines.errors import InvalidOptionsError
from engines.model.tensors import TensorSpec
from engines.options import BuildOptions, ShapeProfile
from engines.proof.batches import PROOF_ROWS
from engines.runtimes.tensorrt.profiles import LEAST_ROWS, ShapeLimits, shape_ranges
from engines.search.tuning import TUNE_BATCH_ROWS

IMAGE = TensorSpec(name="image", dtype=np.dtype(np.float32), shape=(None, 3, 8, 8))
IDS = TensorSpec(name="ids", dtype=np.dtype(np.int64), shape=(None, None))
FIXED = TensorSpec(name="fixed", dtype=np.dtype(np.float32), shape=(4, 2))


def test_the_batch_goes_up_to_what_batching_allows_and_is_fastest_there() -> None:
    found = shape_ranges((IMAGE, FIXED), ShapeLimits(max_rows=64))
    assert found["image"].least == (1, 3, 8, 8)
    assert found["image"].usual == found["image"].largest == (64, 3, 8, 8)
    assert found["fixed"].least == found["fixed"].usual == found["fixed"].largest == (4, 2)


def test_small_batches_still_leave_room_for_what_proofs_and_tuning_run() -> None:
    found = shape_ranges((IMAGE,), ShapeLimits(max_rows=1))["image"]
    assert (found.usual[0], found.largest[0]) == (1, LEAST_ROWS)
    assert max(PROOF_ROWS, TUNE_BATCH_ROWS) <= LEAST_ROWS


def test_free_lengths_have_a_range_and_a_profile_sets_another() -> None:
    assert shape_ranges((IDS,), ShapeLimits())["ids"].describe() == "[1 to 32, 1 to 512]"
    profile = {"ids": ShapeProfile(min=(1, 8), opt=(4, 64), max=(8, 2048))}
    found = shape_ranges((IDS,), ShapeLimits(profile=profile))["ids"]
    assert (found.least, found.usual, found.largest) == ((1, 8), (4, 64), (8, 2048))
    assert found.contains((8, 2048))
    assert not found.contains((9, 2048))
    assert not found.contains((1, 7))


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        ({"imag": ((1,), (1,), (1,))}, "names the input 'imag'; the model reads image."),
        ({"image": ((1, 3, 8), (1, 3, 8), (2, 3, 8))}, r"gives 'image' the min \[1, 3, 8\]"),
        ({"image": ((1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 9, 8))}, r"gives 'image' the max \[2, 3, 9, 8\]"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(
    profile: dict[str, tuple[tuple[int, ...], ...]], sentence: str
) -> None:
    asked = {name: ShapeProfile(min=low, opt=usual, max=high) for name, (low, usual, high) in profile.items()}
    with pytest.raises(InvalidOptionsError, match=sentence):
        shape_ranges((IMAGE,), ShapeLimits(profile=asked))


@pytest.mark.parametrize(
    "profile",
    [
        {"min": [2, 1], "opt": [1, 1], "max": [4, 4]},
        {"min": [1, 1], "opt": [5, 1], "max": [4, 4]},
        {"min": [1], "opt": [1, 1], "max": [1, 1]},
    ],
)
def test_a_profile_that_does_not_rise_is_refused_in_a_sentence(profile: dict[str, list[int]]) -> None:
    with pytest.raises(InvalidOptionsError, match="does not rise in every dimension; give three shapes"):
        BuildOptions.parse({"profile": {"x": profile}})
    with pytest.raises(InvalidOptionsError, match=r"profile\.x\.min\.0"):
        BuildOptions.parse({"profile": {"x": {"min": [0], "opt": [1], "max": [1]}}})
