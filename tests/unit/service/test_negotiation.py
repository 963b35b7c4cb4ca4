import pytest

from service.http.negotiation import preferred

JSON, HTML = "application/json", "text/html"
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        (CHROME, HTML),
        (HTML, HTML),
        ("TEXT/HTML", HTML),
        (JSON, JSON),
        ("text/html, application/json", JSON),
        ("text/html;q=0.4, application/json;q=0.5", JSON),
        ("text/html ; q=0.5 , application/json ; q=0.4", HTML),
        ("text/html;level=1;q=0.9, application/json;q=0.5", HTML),
        # The more specific range counts, wherever it stands and however high the other.
        ("*/*, application/json;q=0", HTML),
        ("text/*;q=1, text/html;q=0.1, application/json;q=0.2", JSON),
        ("text/*, application/*;q=0.9", HTML),
        ("text/html;q=0", JSON),
        ("text/html;q=0, application/json;q=0", JSON),
        ("image/png", JSON),
        ("text/html;q=high, */*;q=0.1", JSON),
        ("text/html;q=1e9, */*;q=0.1", JSON),
        ("text/html;q=7, application/json", JSON),
        ("text/html, text/html;q=0.1, application/json;q=0.5", HTML),
        (", ;q=1, text/html", HTML),
    ],
)
def test_the_highest_quality_is_preferred_and_of_equal_ones_the_first_offer(
    accept: str, expected: str
) -> None:
    assert preferred(accept, (JSON, HTML)) == expected
