"""Finds the attention scores of a transformer: the products of queries and keys."""

import onnx

from engines.model.wiring import readers

_ON_THE_WAY = frozenset({"Mul", "Div", "Add", "Where"})
"""What scales and masks scores."""


def score_products(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of the MatMuls whose product reaches Softmax and nothing else, scaled and masked at most.

    Nodes must be in topological order.
    """
    outputs = {value.name for value in graph.output}
    read_by = readers(graph)
    # What is read next is known first.
    scores: set[str] = set()

    def is_score(tensor: str) -> bool:
        return tensor in read_by and all(
            node.op_type == "Softmax" or (node.op_type in _ON_THE_WAY and node.output[0] in scores)
            for node in read_by[tensor]
        )

    for node in reversed(graph.node):
        if node.op_type in {"MatMul", *_ON_THE_WAY} and node.output[0] not in outputs:
            scores.update(tensor for tensor in node.output if is_score(tensor))
    return frozenset(
        node.name for node in graph.node if node.op_type == "MatMul" and node.output[0] in scores
    )
