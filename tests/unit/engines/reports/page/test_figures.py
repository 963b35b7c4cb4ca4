import pytest

from engines.fidelity.accuracy import BEST_DB
from engines.reports.page.figures import (
    NOTHING,
    cosine,
    decibels,
    measured,
    milliseconds,
    rate,
    relative_error,
    share,
    size,
    times,
)


def test_figures_are_written_for_people() -> None:
    assert [decibels(value) for value in (35.24, BEST_DB, -BEST_DB)] == ["35.2 dB", "exact", "lost"]
    assert [milliseconds(value) for value in (0.01234, 1.239, 1234.5)] == ["0.0123 ms", "1.24 ms", "1,234 ms"]
    assert [rate(value) for value in (0.512, 12.3, 12345.6)] == ["0.51", "12", "12,346"]
    assert [size(value) for value in (12, 1536, 197_632, 3 * 2**30, 5 * 2**40)] == [
        "12 bytes",
        "1.5 KiB",
        "193 KiB",
        "3.0 GiB",
        "5120 GiB",
    ]
    assert (times(3.214), cosine(0.999976)) == ("3.21x", "0.99998")


def test_a_share_is_not_rounded_up_to_all() -> None:
    assert [share(value) for value in (1.0, 0.99999, 0.98, 0.0)] == ["100%", "99.99%", "98.00%", "0.00%"]


@pytest.mark.parametrize("write", [decibels, milliseconds, rate, size, times, cosine, share])
def test_what_is_not_there_is_a_dash(write: object) -> None:
    assert callable(write)
    assert write(None) == NOTHING


def test_relative_error_is_that_of_amplitudes() -> None:
    assert [relative_error(value) for value in (0.0, 20.0, 40.0)] == pytest.approx([100.0, 10.0, 1.0])


def test_what_a_clause_measures_has_its_unit() -> None:
    values = {"row_sqnr_p5_db": 30.0, "cosine": 0.98, "top1_weighted": 0.98, "max_abs_error": 0.0012345}
    assert [measured(*item) for item in values.items()] == ["30.0 dB", "0.98000", "98.00%", "0.00123"]
    assert measured("sqnr_db", None) == NOTHING
