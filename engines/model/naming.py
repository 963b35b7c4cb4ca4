"""How messages call the parts of an untrusted model: on one line and short, whatever the names hold."""

import onnx

_LONGEST = 120


def quote(name: str) -> str:
    """The name in quotes, control characters escaped, the middle of a long one left out."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"
    return repr(name)


def label(node: onnx.NodeProto, number: int | None = None) -> str:
    """`node 'conv1' (Conv)`; by its place or its output where the node has no name."""
    operator = quote(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)[1:-1]
    if node.name:
        return f"node {quote(node.name)} ({operator})"
    if number is not None:
        return f"node number {number} ({operator}, without a name)"
    return f"the {operator} node that writes {quote(node.output[0] if node.output else '')}"
