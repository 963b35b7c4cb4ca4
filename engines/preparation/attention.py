"""Attention as runtimes know it, without what exporters write around it.

Runtimes run softmax(Q K^T + mask) V in one kernel where they recognise it. PyTorch's exporter (torchlib's
`scaled_dot_product_attention`) hides it twice. K is transposed in three dimensions, between two Reshapes that look up
its shape. And because the softmax of a query that may see no key is NaN, every probability is tested for it and
replaced by 0. Both are written here in a form that gives the same numbers for all finite scores.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.model.wiring import producers
from engines.preparation.tidying import fresh_name, remove_dead_nodes, tensor_names, use_counts

MASKED = -1e30
"""What is added to a masked score in place of minus infinity. Beside a score that is not masked its exponential is 0
all the same; where all are masked they are equal, and nothing becomes NaN."""

_ALL_BUT_TWO = (None, -2)
_SECOND_LAST = (-2, -1)
_LAST = (-1, None)


_AXES_ARE_INPUTS = 18
"""The first opset whose ReduceMax takes its axes as an input rather than as an attribute."""


def simplify_attention(graph: onnx.GraphProto, opset: int) -> None:
    """Rewrites the graph in place; nodes that nothing reads any more are gone afterwards."""
    _KeyTransposes(graph).rewrite()
    # The look-ups of K's shape are still readers of K.
    remove_dead_nodes(graph)
    _merge_transposes(graph)
    _Guards(graph, opset).rewrite()
    remove_dead_nodes(graph)


class _View:
    """A graph with its constants and producers, into which nodes can be put in place of others or behind them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = producers(graph)
        self._tensors = tensor_names(graph)
        self._node_names = {node.name for node in graph.node}
        self._behind: dict[str, list[onnx.NodeProto]] = {}

    def value(self, tensor: str) -> NDArray[np.generic] | None:
        """A constant's value; None for other tensors."""
        found = self.constants.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def producer(self, tensor: str, operator: str) -> onnx.NodeProto | None:
        """The node that makes `tensor`, if it is such an operator."""
        node = self.producers.get(tensor)
        return node if node is not None and node.op_type == operator else None

    def constant(self, wanted: str, value: NDArray[np.generic]) -> str:
        name = fresh_name(wanted, self._tensors)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def behind(
        self, tensor: str, operator: str, inputs: Sequence[str], wanted: str, **attributes: object
    ) -> str:
        """Puts a node behind the one that makes `tensor`, and returns its output."""
        output = fresh_name(wanted, self._tensors)
        name = fresh_name(f"{output}_node", self._node_names)
        node = helper.make_node(operator, inputs, [output], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._behind.setdefault(tensor, []).append(node)
        return output

    def finish(self) -> None:
        ordered = list(self._ordered(list(self.graph.node)))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def _ordered(self, nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for output in node.output:
                yield from self._ordered(self._behind.get(output, []))


class _KeyTransposes(_View):
    """Reshape to [-1, S, D], Transpose, Reshape to [..., D, S] becomes one Transpose of the last two axes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in graph.value_info
            if value.type.tensor_type.HasField("shape")
        }

    def rewrite(self) -> None:
        for node in self.graph.node:
            found = self._transposed(node) if node.op_type == "Reshape" else None
            if found is not None:
                source, rank = found
                node.op_type = "Transpose"
                del node.input[:]
                del node.attribute[:]
                node.input.append(source)
                order = [*range(rank - 2), rank - 1, rank - 2]
                node.attribute.append(helper.make_attribute("perm", order))

    def _transposed(self, last: onnx.NodeProto) -> tuple[str, int] | None:
        """What a Reshape gives back with its last two axes swapped, and its rank."""
        middle = self.producer(last.input[0], "Transpose")
        if middle is None or permutation(middle) != [0, 2, 1]:
            return None
        first = self.producer(middle.input[0], "Reshape")
        if first is None:
            return None
        source = first.input[0]
        rank = self._rank(source)
        flat, whole = self._sizes(first.input[1], source), self._sizes(last.input[1], source)
        if flat != [-1, _SECOND_LAST, _LAST] or whole != [_ALL_BUT_TWO, _LAST, _SECOND_LAST]:
            return None
        return None if rank is None else (source, rank)

    def _sizes(self, shape: str, source: str) -> list[object] | None:
        """What a Concat puts together: numbers, and slices of the shape of `source`."""
        concat = self.producer(shape, "Concat")
        if concat is None:
            return None
        sizes: list[object] = []
        for part in concat.input:
            constant = self.value(part)
            if constant is not None:
                sizes += constant.tolist() if constant.ndim == 1 else [None]
            else:
                sizes.append(self._slice_of_shape(part, source))
        return sizes

    def _slice_of_shape(self, tensor: str, source: str) -> tuple[int | None, int | None] | None:
        node = self.producer(tensor, "Slice")
        if node is None or len(node.input) > 3 or not self._is_whole_shape(node.input[0], source):
            return None
        bounds = [self.value(name) for name in node.input[1:3]]
        if any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, end = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
        # Exporters write the ends of an axis as the ends of an int64.
        return None if start < -(2**31) else start, None if end > 2**31 else end

    def _is_whole_shape(self, tensor: str, source: str) -> bool:
        node = self.producer(tensor, "Shape")
        bounds = {} if node is None else {attribute.name: attribute.i for attribute in node.attribute}
        return (
            node is not None and node.input[0] == source and not bounds.get("start") and "end" not in bounds
        )

    def _rank(self, tensor: str) -> int | None:
        if tensor in self._ranks:
            return self._ranks[tensor]
        node = self.producer(tensor, "Transpose")
        order = None if node is None else permutation(node)
        return None if order is None else len(order)


def permutation(node: onnx.NodeProto) -> list[int] | None:
    """The order of a Transpose's axes; None where it is left to the default."""
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)


def _merge_transposes(graph: onnx.GraphProto) -> None:
    """A Transpose of a Transpose that nothing else reads becomes one."""
    made_by = producers(graph)
    uses = use_counts(graph)
    for node in graph.node:
        first = made_by.get(node.input[0]) if node.op_type == "Transpose" else None
        if first is None or first.op_type != "Transpose" or uses[node.input[0]] > 1:
            continue
        before, after = permutation(first), permutation(node)
        if before is not None and after is not None:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("perm", [before[axis] for axis in after]))
            node.input[0] = first.input[0]


class _Guards(_View):
    """Where(IsNaN(p), 0, p) behind a softmax goes; rows without a key are multiplied by 0 instead.

    A softmax of finite scores and a mask is NaN only where minus infinity was added to all of a row. Whether that
    can be is read from the mask: a choice between 0 and minus infinity tells, row by row and once for all layers,
    whether any key may be seen.
    """

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        super().__init__(graph)
        self._opset = opset
        self._uses = use_counts(graph)

    def rewrite(self) -> None:
        renamed: dict[str, str] = {}
        # By the mask: the finite mask, and the 0 or 1 of each row.
        masks: dict[str, tuple[str, str]] = {}
        for node in self.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = renamed.get(name, name)
            softmax = self._guarded(node)
            scores = None if softmax is None else self._scores(softmax)
            if softmax is None or scores is None:
                continue
            probabilities = softmax.output[0]
            addition, place = scores
            if addition is not None:
                mask = addition.input[place]
                if mask not in masks:
                    masks[mask] = self._finite(mask)
                addition.input[place], seen = masks[mask]
                probabilities = self.behind(
                    probabilities, "Mul", [probabilities, seen], f"{probabilities}_of_rows_with_keys"
                )
            renamed[node.output[0]] = probabilities
        self.finish()

    def _guarded(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The Softmax that `node` guards."""
        if node.op_type != "Where" or node.output[0] in {value.name for value in self.graph.output}:
            return None
        test = self.producer(node.input[0], "IsNaN")
        zero = self.value(node.input[1])
        softmax = self.producer(node.input[2], "Softmax")
        if test is None or test.input[0] != node.input[2] or zero is None or zero.size != 1 or zero.any():
            return None
        along_keys = softmax is not None and all(attribute.i == -1 for attribute in softmax.attribute)
        return softmax if along_keys else None

    def _scores(self, softmax: onnx.NodeProto) -> tuple[onnx.NodeProto | None, int] | None:
        """The addition of a mask of minus infinities in front of a Softmax and which input the mask is.

        No addition where no such mask is added; None where it cannot be told.
        """
        scores = softmax.input[0]
        addition = self.producer(scores, "Add")
        if addition is None:
            return (None, 0) if self._is_product(scores) else None
        for place in (0, 1):
            # What is masked already may have rows of its own without a key, alone or with this mask.
            if not self._is_product(addition.input[1 - place]):
                continue
            if self._choices(addition.input[place]) is not None:
                return (addition, place) if self._is_unseen(addition, softmax) else None
            if self._is_finite(addition.input[place]):
                return None, 0
        return None

    def _is_unseen(self, addition: onnx.NodeProto, softmax: onnx.NodeProto) -> bool:
        """Whether nothing but the softmax and its guard reads what a finite mask changes in rows without a key."""
        return self._uses[addition.output[0]] == 1 and self._uses[softmax.output[0]] == 2

    def _is_product(self, tensor: str) -> bool:
        """Whether it is a matrix product, scaled by constants at most, and so finite where its factors are."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in {"Mul", "Div"}:
            factor = self.value(node.input[1])
            if (
                factor is None
                or not np.isfinite(factor).all()
                or (node.op_type == "Div" and not factor.all())
            ):
                return False
            node = self.producers.get(node.input[0])
        return node is not None and node.op_type == "MatMul"

    def _is_finite(self, mask: str) -> bool:
        """Whether a mask is known to hold no infinity."""
        where = self.producer(mask, "Where")
        values = [self.value(name) for name in ([mask] if where is None else where.input[1:])]
        return all(value is not None and bool(np.isfinite(value).all()) for value in values)

    def _choices(self, mask: str) -> tuple[str, bool] | None:
        """The condition of a mask that is 0 or minus infinity, and whether it is 0 where that holds."""
        where = self.producer(mask, "Where")
        if where is None:
            return None
        values = [self.value(name) for name in where.input[1:]]
        if any(value is None or value.size != 1 or value.dtype != np.float32 for value in values):
            return None
        seen, hidden = (float(value.reshape(-1)[0]) for value in values if value is not None)
        if {seen, hidden} != {0.0, -np.inf}:
            return None
        return where.input[0], seen == 0.0

    def _finite(self, mask: str) -> tuple[str, str]:
        """The mask without infinities, and 1 for each of its rows in which any key may be seen, else 0."""
        found = self._choices(mask)
        if found is None:
            raise ValueError(f"{mask!r} is no mask.")
        condition, seen_where_true = found
        finite = self._chosen(mask, "finite", condition, (0.0, MASKED) if seen_where_true else (MASKED, 0.0))
        keys = self._chosen(mask, "keys", condition, (1.0, 0.0) if seen_where_true else (0.0, 1.0))
        return finite, self._largest(keys, mask)

    def _largest(self, keys: str, mask: str) -> str:
        """The largest value of each row."""
        if self._opset < _AXES_ARE_INPUTS:
            return self.behind(keys, "ReduceMax", [keys], f"{mask}_rows", keepdims=1, axes=[-1])
        axis = self.constant(f"{mask}_axis", np.array([-1], np.int64))
        return self.behind(keys, "ReduceMax", [keys, axis], f"{mask}_rows", keepdims=1)

    def _chosen(self, mask: str, name: str, condition: str, values: tuple[float, float]) -> str:
        constants = [
            self.constant(f"{mask}_{name}_{number}", np.array(value, np.float32))
            for number, value in enumerate(values)
        ]
        return self.behind(mask, "Where", [condition, *constants], f"{mask}_{name}")
