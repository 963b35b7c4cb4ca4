"""The model of a build as it was uploaded: one ONNX file, and the parts that hold its weights where it names some."""

import json

from engines.model.external_weights import named_parts
from engines.model.model import Model, load_model
from engines.workspace import UPLOADED_MODEL, UPLOADED_WEIGHTS, WEIGHTS_INDEX, Workspace


def load_uploaded(workspace: Workspace) -> Model:
    """Reads the uploaded model with its weights.

    Raises:
        InvalidModelError, UnsupportedModelError: see `engines.model.model.load_model`.
    """
    index = workspace.path(WEIGHTS_INDEX)
    names: list[str] = json.loads(index.read_bytes()) if index.exists() else []
    parts = named_parts(
        [(name, workspace.path(f"{UPLOADED_WEIGHTS}{number:03d}")) for number, name in enumerate(names)]
    )
    return load_model(workspace.path(UPLOADED_MODEL), weights=parts or None)
