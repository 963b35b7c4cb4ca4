import pytest

from service.errors import NotFoundError
from service.serving.published import Published, number_of
from tests.unit.service.test_residency import version

PUBLISHED = Published([version("m", 2), version("m", 1, default=True), version("n", 7), version("n", 3)])


@pytest.mark.parametrize(
    ("model", "named", "expected"),
    [
        ("m", None, 1),
        ("m", "2", 2),
        # A model without a default: its newest.
        ("n", None, 7),
        ("n", "3", 3),
    ],
)
def test_finds_what_a_request_names(model: str, named: str | None, expected: int) -> None:
    assert PUBLISHED.named(model, named).number == expected


def test_says_what_there_is_instead() -> None:
    with pytest.raises(NotFoundError, match="there is no model 'x'; GET /v1/models lists all"):
        PUBLISHED.named("x", None)
    with pytest.raises(NotFoundError, match="model 'n' has no version '4'; it has 3, 7"):
        PUBLISHED.named("n", "4")


def test_knows_the_defaults() -> None:
    assert PUBLISHED.defaults() == {("m", 1)}
    assert [found.number for found in PUBLISHED.of_model("n")] == [3, 7]
    assert len(PUBLISHED) == 4


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "1" * 10, "\u0661"])
def test_what_is_no_number_names_no_version(text: str) -> None:
    assert number_of(text) == -1
