"""NVIDIA's bindings as type stubs, so that mypy holds our code against their names, arguments and types."""

import keyword
import re
from typing import Any

_HEAD = """\
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, SupportsInt
from typing_extensions import Buffer
import typing
"""
_NAMES = {"IParserError": "ParserError", "IEngineInspector": "EngineInspector", "IBuilder": "Builder"}
"""What C++ calls classes that have another name in Python."""
_SAFE = re.compile(r"[\w\[\], .|]+")


def stub(listing: dict[str, Any]) -> str:
    """A stub module with everything that the bindings have, as far as their descriptions say."""
    classes = listing["classes"]
    lines = [_HEAD, "__version__: str"]
    for name, kind in classes.items():
        bases = [base for base in kind["bases"] if base in classes][:1]
        # A Dims is a sequence, too.
        bases = ["Sequence[int]"] if name == "Dims" else bases
        lines += _class_lines(name, kind, bases, classes, "")
    for name, signatures in listing["functions"].items():
        lines += _functions(name, signatures, classes, "", method=False)
    return "\n".join(lines) + "\n"


def _class_lines(
    name: str, kind: dict[str, Any], bases: list[str], classes: dict[str, Any], indent: str
) -> list[str]:
    inner = indent + "    "
    lines = [f"{indent}class {name}({', '.join(bases)}):"]
    lines += [f"{inner}{member}: typing.ClassVar[{_enum_type(name, indent)}]" for member in kind["enum"]]
    if kind["enum"]:
        lines.append(f"{inner}def __int__(self) -> int: ...")
    if name == "IHostMemory":
        lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
    if name == "Dims":
        lines.append(f"{inner}def __len__(self) -> int: ...")
        lines.append(f"{inner}def __getitem__(self, index: Any) -> Any: ...")
    for member, described in kind["members"].items():
        if kind["enum"] and member in ("name", "value", "__init__"):
            continue
        if described["kind"] == "method":
            lines += _functions(member, described["signatures"], classes, inner, method=True)
        elif described["kind"] == "class":
            lines += _class_lines(member, described["members"], [], classes, inner)
        elif described["kind"] == "constant":
            lines.append(f"{inner}{member}: typing.ClassVar[{described['class']}]")
        else:
            lines += _property(member, described, classes, inner)
    return [*lines, f"{inner}..."]


def _enum_type(name: str, indent: str) -> str:
    # The only enumeration inside of a class.
    return "ILogger.Severity" if indent and name == "Severity" else name


def _property(name: str, described: dict[str, Any], classes: dict[str, Any], indent: str) -> list[str]:
    results = [signature.rpartition(" -> ")[2] for signature in described["signatures"]]
    kind = _type(results[0], classes, given=False) if results else "Any"
    lines = [f"{indent}@property", f"{indent}def {name}(self) -> {kind}: ..."]
    if described["writable"]:
        lines += [f"{indent}@{name}.setter", f"{indent}def {name}(self, value: {kind}) -> None: ..."]
    return lines


def _functions(
    name: str, signatures: list[str], classes: dict[str, Any], indent: str, *, method: bool
) -> list[str]:
    found = [line for text in signatures if (line := _function(name, text, classes, indent))]
    if not found:
        start = "self, " if method else ""
        result = "None" if name == "__init__" else "Any"
        return [f"{indent}def {name}({start}*args: Any, **kwargs: Any) -> {result}: ..."]
    if len(found) == 1:
        return found
    return [line for text in found for line in (f"{indent}@typing.overload", text)]


def _function(name: str, signature: str, classes: dict[str, Any], indent: str) -> str | None:
    arguments, _, result = signature.partition("(")[2].rpartition(") -> ")
    rendered: list[str] = []
    for argument in split_arguments(arguments):
        parameter, _, rest = argument.partition(": ")
        kind, has_default, _ = rest.partition(" = ")
        optional = " | None = ..." if has_default else ""
        if parameter == "self":
            rendered.append("self")
            continue
        if not parameter.isidentifier() or keyword.iskeyword(parameter):
            return None
        if rendered and rendered[-1].endswith("...") and not has_default:
            return None
        rendered.append(f"{parameter}: {_type(kind, classes, given=True)}{optional}")
    return f"{indent}def {name}({', '.join(rendered)}) -> {_type(result, classes, given=False)}: ..."


def split_arguments(text: str) -> list[str]:
    """The arguments of a signature: split at the commas that are inside of no bracket."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _type(text: str, classes: dict[str, Any], *, given: bool) -> str:
    """A type of pybind11's as mypy reads it; what it cannot is Any."""
    text = re.sub(r"(nvinfer1|nvonnxparser)::(v_\d_\d::)?", "", text).replace(
        "tensorrt_bindings.tensorrt.", ""
    )
    text = text.replace("collections.abc.", "").replace("typing_extensions.Buffer", "Buffer")
    text = text.replace("typing.Supports", "Supports")
    for foreign, ours in _NAMES.items():
        text = re.sub(rf"\b{foreign}\b", ours, text)
    known = {*classes, "Buffer", "Sequence", "SupportsInt", "SupportsFloat", "list", "tuple", "str", "int"}
    known |= {"float", "bool", "None", "object", "ILogger", "Severity", "Callable", "dict"}
    if not _SAFE.fullmatch(text) or not set(re.findall(r"\w+", text)) <= known:
        return "Any"
    # pybind11 makes a Dims of any sequence.
    return re.sub(r"\bDims\b", "Sequence[SupportsInt]", text) if given else text
