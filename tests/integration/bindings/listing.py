"""Prints as JSON what NVIDIA's bindings have: run in a process of its own, with the bindings on its path.

They are native code that links to libraries which are not there, and two versions of them cannot share a process.
"""

import importlib
import json
import sys
from typing import Any


def listed(module: Any) -> dict[str, Any]:
    """Every public class with its members, and every public function with its signatures."""
    names = [name for name in vars(module) if not name.startswith("_")]
    return {
        "classes": {
            name: _class(value) for name in names if isinstance(value := getattr(module, name), type)
        },
        "functions": {
            name: _signatures(value)
            for name in names
            if callable(value := getattr(module, name)) and not isinstance(value, type)
        },
        "version": module.__version__,
    }


def _class(kind: type) -> dict[str, Any]:
    enum = list(getattr(kind, "__members__", {}))
    return {
        "bases": [base.__name__ for base in kind.__mro__[1:]],
        "enum": enum,
        "members": {
            name: _member(value)
            for name, value in vars(kind).items()
            if name == "__init__" or (not name.startswith("_") and name not in enum)
        },
    }


def _member(value: Any) -> dict[str, Any]:
    if isinstance(value, property):
        return {
            "kind": "property",
            "signatures": _signatures(value.fget),
            "writable": value.fset is not None,
        }
    if isinstance(value, type):
        return {"kind": "class", "signatures": [], "class": value.__qualname__, "members": _class(value)}
    if callable(value):
        return {"kind": "method", "signatures": _signatures(value)}
    return {"kind": "constant", "signatures": [], "class": type(value).__qualname__}


def _signatures(value: Any) -> list[str]:
    """The lines in which pybind11 describes arguments and result; of an overloaded function several."""
    lines = [line.strip() for line in (value.__doc__ or "").strip().splitlines()]
    found = [line.split(". ", 1)[1] for line in lines if line[:2].rstrip(".").isdigit() and ") -> " in line]
    return found or [line for line in lines[:1] if ") -> " in line]


if __name__ == "__main__":
    json.dump(listed(importlib.import_module(sys.argv[1])), sys.stdout)
