"""Writes what of the Helm chart follows from other files: `python -m scripts.chart`.

The README's table of values comes from values.yaml and its comments, the variables that the schema lets `settings`
have from the service's settings.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.settings import Settings

CHART = Path(__file__).parents[1] / "k8s" / "octet"
MANAGED = frozenset({"home", "host", "port", "no_auth", "admin_key", "database_url", "store_url", "worker"})
"""Fields of the settings that the chart's other values decide."""
_KEY = re.compile(r"( *)([A-Za-z]+):(?: (.*))?")
_TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end of values -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value that users may set."""

    # Its keys, joined by points.
    path: str
    default: Any
    # The comment above it, in one line.
    text: str


def values(text: str) -> Iterator[Value]:
    """All leaves of a values.yaml; a comment belongs to the key below it."""
    parents: list[tuple[int, str]] = []
    comments: list[str] = []
    loaded = yaml.safe_load(text)
    described: dict[str, str] = {}
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comments.append(line.strip().lstrip("# "))
        elif match := _KEY.fullmatch(line):
            depth = len(match[1])
            parents = [*(parent for parent in parents if parent[0] < depth), (depth, match[2])]
            described[".".join(key for _, key in parents)] = " ".join(comments)
            comments = []
        else:
            comments = []
    for path, default in _leaves(loaded, ()):
        # What is said of a group is said once, where it begins.
        groups = [".".join(path.split(".")[:depth]) for depth in range(1, path.count(".") + 1)]
        said = [*(described.pop(group, "") for group in groups), described[path]]
        yield Value(path=path, default=default, text=" ".join(filter(None, said)))


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    whole = not isinstance(node, dict) or not node or path[-1:] in (("resources",), ("labels",))
    if path and whole:
        yield ".".join(path), node
        return
    for key, below in node.items():
        yield from _leaves(below, (*path, key))


def table(text: str) -> str:
    """The Markdown table of a values.yaml."""
    rows = [f"| `{value.path}` | `{json.dumps(value.default)}` | {value.text} |\n" for value in values(text)]
    return "".join(["| value | default | |\n|---|---|---|\n", *rows])


def readme(before: str, text: str) -> str:
    """The README with the table of a values.yaml."""
    return _TABLE.sub(lambda _: table(text), before)


def settings() -> dict[str, Any]:
    """What the schema lets `settings` have."""
    names = sorted(f"OCTET_{field.upper()}" for field in Settings.model_fields if field not in MANAGED)
    return {name: {"type": "string"} for name in names}


def main() -> None:
    """Writes both."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    page = CHART / "README.md"
    page.write_text(readme(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    file = CHART / "values.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    schema["properties"]["settings"]["properties"] = settings()
    file.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
