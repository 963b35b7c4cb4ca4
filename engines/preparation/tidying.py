"""What can leave a graph without a trace: identities, constant nodes, dead nodes, unused weights."""

from collections import Counter
from collections.abc import Iterable, MutableSequence
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from engines.model.growth import constant_value


def hide_default_inputs(graph: onnx.GraphProto) -> None:
    """Makes initializers that are also inputs (the habit of old exporters) constants, as octet never feeds them."""
    initializers = {tensor.name for tensor in graph.initializer}
    _keep(graph.input, [value.name not in initializers for value in graph.input])


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turns Constant nodes into initializers, but for those that are outputs of the graph, strings and sparse."""
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = None if set(node.output) & outputs else constant_value(node)
        kept.append(value is None)
        if value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    _keep(graph.node, kept)


def remove_identities(graph: onnx.GraphProto) -> None:
    """Joins what Identity, and Dropout outside of training, keep apart.

    Names of the graph's inputs and outputs stay; an Identity from an input or weight straight to an output stays.
    """
    uses = use_counts(graph)
    outputs = {value.name for value in graph.output}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        _rename(node.input, renamed)
        passes = _passes_through(node, uses, initializers) and node.output[0] not in outputs
        if passes:
            renamed[node.output[0]] = node.input[0]
        kept.append(not passes)
    _keep(graph.node, kept)
    _write_outputs_directly(graph, outputs)


def remove_dead_nodes(graph: onnx.GraphProto) -> None:
    """Drops nodes whose outputs lead to no output of the graph, and initializers that nothing reads."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        kept.append(bool(needed.intersection(node.output)))
        if kept[-1]:
            needed.update(node.input)
    _keep(graph.node, kept[::-1])
    _keep(graph.initializer, [tensor.name in needed for tensor in graph.initializer])


def name_nodes(graph: onnx.GraphProto) -> None:
    """Gives every node a name of its own; names that are unique already stay."""
    counts = Counter(node.name for node in graph.node)
    taken = set(counts)
    for node in graph.node:
        if not node.name or counts[node.name] > 1:
            counts[node.name] -= 1
            node.name = fresh_name(node.name or f"{node.op_type}_{node.output[0]}", taken)


def fresh_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, with a number where it is taken; taken from now on."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """The names of all tensors in the graph."""
    values = (value.name for field in (graph.input, graph.output, graph.initializer) for value in field)
    return {*values, *(name for node in graph.node for name in (*node.input, *node.output))}


def use_counts(graph: onnx.GraphProto) -> Counter[str]:
    """How often each tensor is read, being an output of the graph counted as once."""
    return Counter(
        [*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)]
    )


def _passes_through(node: onnx.NodeProto, uses: Counter[str], initializers: dict[str, TensorProto]) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(uses[name] for name in node.output[1:] if name):
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    training = initializers.get(node.input[2])
    return training is not None and not numpy_helper.to_array(training).any()


def _write_outputs_directly(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Lets the node before an Identity to a graph output write that output itself."""
    written = {name for node in graph.node for name in node.output if name} - outputs
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        joins = node.op_type == "Identity" and node.input[0] in written and node.input[0] not in renamed
        if joins:
            renamed[node.input[0]] = node.output[0]
        kept.append(not joins)
    _keep(graph.node, kept)
    for node in graph.node:
        _rename(node.input, renamed)
        _rename(node.output, renamed)


def _rename(names: MutableSequence[str], renamed: dict[str, str]) -> None:
    for place, name in enumerate(names):
        if name in renamed:
            names[place] = renamed[name]


def _keep(items: MutableSequence[Any], kept: Iterable[bool]) -> None:
    for place in [place for place, stays in enumerate(kept) if not stays][::-1]:
        del items[place]
