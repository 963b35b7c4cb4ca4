import pytest

from engines.reports.page.markup import Markup, element, escape, join, table, verbatim
from tests.unit.engines.reports.page.parsing import Page


def test_text_is_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = element("b", "<i> & 'x'")
    assert inner == "<b>&lt;i&gt; &amp; &#x27;x&#x27;</b>"
    assert element("p", inner, "<") == f"<p>{inner}&lt;</p>"


def test_attributes_are_escaped() -> None:
    made = element("p", title='"><script>', class_="a", aria_label="b", x=1.5)
    assert made == '<p title="&quot;&gt;&lt;script&gt;" class="a" aria-label="b" x="1.5"></p>'


@pytest.mark.parametrize("name", ["", "a b", "on>", 'x"'])
def test_names_are_names(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        element(name)
    with pytest.raises(ValueError, match="cannot be the name"):
        element("p", **{name: "value"})


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\x00b", "a\\x00b"),
        ("a\nb", "a\\nb"),
        # A mark that would write what follows from right to left.
        ("a\u202eb", "a\\u202eb"),
        ("\ud800", "\\ud800"),
        ("größer 漢字", "größer 漢字"),
    ],
)
def test_what_cannot_be_seen_is_written_as_an_escape(text: str, written: str) -> None:
    assert escape(text) == written
    assert element("p", text) == f"<p>{written}</p>"


def test_adding_strings_to_markup_does_not_make_them_markup() -> None:
    assert not isinstance(verbatim("<b/>") + "<i/>", Markup)
    assert join([verbatim("<b></b>"), "<i>"]) == "<b></b>&lt;i&gt;"


def test_a_table_has_a_caption_and_headings_of_columns_and_rows() -> None:
    page = Page(table("Speeds <1>", ("Engine", "#ms"), [("<int8>", "1.5"), ("fp32", "3")]))
    assert page.inside["caption"] == ["Speeds <1>"]
    assert page.inside["th"] == ["Engine", "ms", "<int8>", "fp32"]
    assert page.inside["td"] == ["1.5", "3"]
    assert [value for name, value in page.attributes if name == "scope"] == ["col", "col", "row", "row"]
