"""Edits one graph in place: constants that one node reads, new nodes beside old ones, names that nobody has yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.model.wiring import producers
from engines.preparation.tidying import fresh_name, remove_dead_nodes, tensor_names, use_counts

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A constant input of a node that takes up a factor per channel."""

    node: onnx.NodeProto
    index: int
    # From the constant's value and the factor, one per channel, to the new value.
    apply: Callable[[Floats, Floats], Floats]


class GraphEditor:
    """What rewriting a graph needs, whatever the rewriting.

    Every constant that changes gets a copy of its own: others may share it. New nodes are in their places only
    after `finish`.
    """

    # What the names of changed constants end with.
    suffix = "_edited"

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._producers = producers(graph)
        self._uses = use_counts(graph)
        self._values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        self._tensors = tensor_names(graph)
        self._node_names = set(self._nodes)
        # New nodes, by the name of the old node that they go in front of, or behind.
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._after: dict[str, list[onnx.NodeProto]] = {}

    def finish(self) -> None:
        """Puts the new nodes in their places and drops what nothing reads any more."""
        ordered: list[onnx.NodeProto] = []
        for node in self._graph.node:
            ordered += [*self._before.get(node.name, ()), node, *self._after.get(node.name, ())]
        copies = []
        for node in ordered:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self._graph.node[:]
        self._graph.node.extend(copies)
        remove_dead_nodes(self._graph)
        # Dead nodes leave their shapes behind, and tensors may have been renamed.
        made = tensor_names(self._graph)
        described = [value for value in self._graph.value_info if value.name in made]
        del self._graph.value_info[:]
        self._graph.value_info.extend(described)

    def _apply(self, folds: Sequence[Fold], factor: Floats) -> None:
        for fold in folds:
            self._replace(fold.node, fold.index, fold.apply(self._value(fold.node, fold.index), factor))

    def _insert(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        *,
        attributes: Sequence[onnx.AttributeProto] = (),
        like: str | None = None,
        before: str | None = None,
        behind: str | None = None,
    ) -> str:
        output = self._name(output)
        name = fresh_name(f"{output}_node", self._node_names)
        node = helper.make_node(operator, inputs, [output], name=name)
        node.attribute.extend(attributes)
        if like is not None:
            self._describe(output, like=like)
        place, neighbour = (self._before, before) if before is not None else (self._after, behind)
        place.setdefault(neighbour or "", []).append(node)
        return output

    def _describe(self, tensor: str, *, like: str) -> None:
        """Gives a new tensor the type and shape of another."""
        if like in self._values:
            value = self._graph.value_info.add()
            value.CopyFrom(self._values[like])
            value.name = tensor

    def _shape(self, node: onnx.NodeProto, index: int) -> tuple[int, ...] | None:
        """Of a constant input; None for others."""
        tensor = self._constants.get(node.input[index])
        return None if tensor is None else tuple(tensor.dims)

    def _value(self, node: onnx.NodeProto, index: int) -> Floats:
        return np.asarray(numpy_helper.to_array(self._constants[node.input[index]]), np.float32)

    def _replace(self, node: onnx.NodeProto, index: int, value: Floats) -> None:
        node.input[index] = self._constant(f"{node.input[index]}{self.suffix}", value)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        name = self._name(name)
        tensor = numpy_helper.from_array(value, name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name

    def _name(self, wanted: str) -> str:
        return fresh_name(wanted, self._tensors)
