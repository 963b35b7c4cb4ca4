"""How the nodes of a graph hang together, and what their attributes say."""

import onnx


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {output: node for node in graph.node for output in node.output}


def readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor, each once, in graph order."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute, or the default where the node leaves it out."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def float_attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """The same of a real one."""
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), default)
