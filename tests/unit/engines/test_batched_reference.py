from collections.abc import Mapping

import numpy as np
import pytest

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.phases.batched_reference import BatchedReference


class Doubler:
    """Doubles three rows at a time, and keeps what it was given."""

    inputs = (TensorSpec(name="x", dtype=np.dtype(np.float32), shape=(3, 2)),)

    def __init__(self, *, rows_back: int = 3) -> None:
        self.batches: list[Array] = []
        self._rows_back = rows_back

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(feeds["x"])
        return {"y": np.asarray(feeds["x"], np.float32)[: self._rows_back] * 2}


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_any_number_of_rows_is_answered_in_order(rows: int) -> None:
    doubler = Doubler()
    given = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    answers = BatchedReference(doubler, 3).run({"x": given})
    np.testing.assert_array_equal(answers["y"], given * 2)
    assert {len(batch) for batch in doubler.batches} == {3}


def test_the_last_batch_is_filled_with_its_last_row() -> None:
    doubler = Doubler()
    BatchedReference(doubler, 3).run({"x": np.arange(8, dtype=np.float32).reshape(4, 2)})
    np.testing.assert_array_equal(doubler.batches[1], [[6, 7]] * 3)


def test_its_inputs_have_a_free_batch() -> None:
    assert [spec.shape for spec in BatchedReference(Doubler(), 3).inputs] == [(None, 2)]


def test_an_output_without_a_row_for_each_row_is_refused() -> None:
    with pytest.raises(EngineRunError, match="output 'y' has 2 rows for 3 rows of input"):
        BatchedReference(Doubler(rows_back=2), 3).run({"x": np.zeros((3, 2), np.float32)})
