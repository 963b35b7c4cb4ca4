"""What of the chart follows from other files, without Helm."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from scripts.chart import CHART, readme, settings, values

VALUES = (CHART / "values.yaml").read_text()
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def groups(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All objects of the schema whose keys are listed."""
    if "properties" in schema:
        yield path, schema
        for key, below in schema["properties"].items():
            yield from groups(below, f"{path}.{key}".lstrip("."))


def test_the_readme_has_the_table_of_these_values() -> None:
    page = (CHART / "README.md").read_text()
    assert readme(page, VALUES) == page
    assert page.count("\n| `") == len(list(values(VALUES)))


def test_the_schema_knows_the_settings_that_there_are() -> None:
    assert SCHEMA["properties"]["settings"]["properties"] == settings()
    assert "OCTET_LANES" in settings()
    assert "OCTET_HOST" not in settings()


def test_the_schema_lists_the_keys_that_there_are_and_refuses_others() -> None:
    loaded = yaml.safe_load(VALUES)
    for path, schema in groups(SCHEMA):
        assert schema["additionalProperties"] is False
        node = loaded
        for key in filter(None, path.split(".")):
            node = node[key]
        # `global` is Helm's own; settings are variables.
        if path != "settings":
            assert schema["properties"].keys() - {"global"} == node.keys()


def test_a_comment_is_of_the_key_below_it_and_that_of_a_group_stands_at_its_first_value() -> None:
    text = "# Of a.\na:\n  # Of b,\n  # in two lines.\n  b: 1\n  c: {}\n\n# Of nothing.\n\nd: [1]\n"
    assert [(value.path, value.default, value.text) for value in values(text)] == [
        ("a.b", 1, "Of a. Of b, in two lines."),
        ("a.c", {}, ""),
        ("d", [1], ""),
    ]
