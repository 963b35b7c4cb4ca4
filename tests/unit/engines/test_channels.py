"""Observation of channels: exact maxima, a bounded sample that does not depend on the batches."""

import numpy as np
import pytest

from engines.calibration.channels import MOST_ROWS, ChannelRange, observe_channels
from engines.errors import CalibrationError
from tests.unit.engines import transformer_graphs as graphs

ROWS = graphs.token_rows(160)


def seen(batch_rows: int) -> ChannelRange:
    batches = [{"tokens": ROWS[start : start + batch_rows]} for start in range(0, len(ROWS), batch_rows)]
    counted: list[int] = []
    found = observe_channels(graphs.plain(), ["tokens"], batches, threads=1, progress=counted.append)
    assert counted[-1] == len(ROWS)
    return found["tokens"]


def test_the_maxima_are_those_of_all_rows() -> None:
    np.testing.assert_array_equal(seen(8).absmax, np.abs(ROWS.reshape(-1, 32)).max(axis=0))


def test_channels_may_be_along_another_axis() -> None:
    batches = [{"tokens": ROWS[start : start + 40]} for start in range(0, len(ROWS), 40)]
    model = graphs.plain()
    found = observe_channels(model, ["tokens"], batches, threads=1, progress=lambda _: None, axis=1)["tokens"]
    np.testing.assert_array_equal(found.absmax, np.abs(ROWS).max(axis=(0, 2)))
    assert found.rows.shape == (MOST_ROWS, graphs.TOKENS)
    every = {row.tobytes() for row in np.moveaxis(ROWS, 1, 2).reshape(-1, graphs.TOKENS)}
    assert {row.tobytes() for row in found.rows} <= every


def test_the_sample_is_bounded_and_made_of_rows() -> None:
    found = seen(8)
    assert found.rows.shape == (MOST_ROWS, 32)
    every = {row.tobytes() for row in ROWS.reshape(-1, 32)}
    picked = {row.tobytes() for row in found.rows}
    assert len(picked) == MOST_ROWS
    assert picked <= every
    # Uniform over the whole run, not its beginning.
    late = {row.tobytes() for row in ROWS.reshape(-1, 32)[480:]}
    assert 0.4 < len(picked & late) / MOST_ROWS < 0.6


@pytest.mark.parametrize("batch_rows", [3, 16, 160])
def test_the_sample_does_not_depend_on_the_batches(batch_rows: int) -> None:
    np.testing.assert_array_equal(seen(batch_rows).rows, seen(8).rows)


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    rows = ROWS[:8].copy()
    rows[5, 0, 3] = np.nan
    with pytest.raises(CalibrationError, match="'tokens' is not finite on the samples from row 0 on"):
        observe_channels(graphs.plain(), ["tokens"], [{"tokens": rows}], threads=1, progress=lambda _: None)
