"""The model of a build as it was uploaded: one ONNX file, and the parts that hold its weights where it names some."""

import json

from engines.errors import InvalidModelError
from engines.model import Model, load_model
from engines.workspace import UPLOADED_MODEL, UPLOADED_WEIGHTS, WEIGHTS_INDEX, Workspace


def load_uploaded(workspace: Workspace) -> Model:
    """Reads the uploaded model with its weights.

    Raises:
        InvalidModelError, UnsupportedModelError: see `engines.model.load_model`.
    """
    index = workspace.path(WEIGHTS_INDEX)
    names: list[str] = json.loads(index.read_bytes()) if index.exists() else []
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidModelError(
            f"two weights files are called {twice!r}: upload each file that the model names once, under its name."
        )
    parts = {name: workspace.path(f"{UPLOADED_WEIGHTS}{number:03d}") for number, name in enumerate(names)}
    return load_model(workspace.path(UPLOADED_MODEL), weights=parts or None)
