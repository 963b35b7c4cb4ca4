"""A fixed batch made free: the constants that hold the batch of a traced graph are found and loosened.

Exporters that trace with one example write its batch into constants: the targets of Reshape, the sizes of Resize,
tokens and recurrent states that join the batch. To find them, the shapes of all tensors are inferred a second time,
node by node, as if the batch were larger; a node whose constants insist on the old batch is rewritten on the way.

What comes out is a candidate. Where a 1 of the graph meant the batch and where it did not is a guess here and
there, so it has to be proven against the original (`engines.phases.batch_rewriting`).
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import UnsupportedModelError
from engines.model.model import Model
from engines.model.naming import label, quote
from engines.preparation.tidying import fresh_name, name_nodes, tensor_names

_TIMES = 13
"""How many times larger the batch is tried: a factor that hardly any dimension has by itself."""
_OLDEST_RESIZE_WITH_AXES = 18
_RECURRENT_STATES = {4: 0, 5: 1, 6: 1}
"""Inputs of LSTM, GRU and RNN that hold a value for each row, and the axis of their batch."""

_LONGEST_SHAPE = 64
"""Elements of a constant that inference may have to read."""

_Shape = tuple[int | None, ...]


def free_batch(model: Model) -> onnx.ModelProto:
    """A candidate with a free batch of a prepared model with a fixed one; `model` is left as it is.

    Shapes between inputs and outputs are left out: they are to be inferred anew.

    Raises:
        UnsupportedModelError: no candidate is found; the message says where the batch is stuck.
    """
    if model.fixed_rows is None:
        raise ValueError("the model's batch is free already.")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _Freed(proto.graph, model.fixed_rows, model.opset).rewrite()
    name_nodes(proto.graph)
    return proto


class _Freed:
    """A graph on its way to a free batch."""

    def __init__(self, graph: onnx.GraphProto, rows: int, opset: int) -> None:
        self._graph = graph
        self._rows = rows
        self._opset = opset
        self._taken = tensor_names(graph)
        self._constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        # Shapes at the fixed batch and at the larger one.
        self._before: dict[str, _Shape] = {
            value.name: _sizes(value.type) for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._types: dict[str, onnx.TypeProto] = {}
        for tensor in graph.initializer:
            self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            self._before[tensor.name] = tuple(tensor.dims)
        self._rules: Mapping[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
            "Concat": self._free_concat,
            "Expand": self._free_expand,
            "GRU": self._free_states,
            "LSTM": self._free_states,
            "RNN": self._free_states,
            "Reshape": self._free_reshape,
            "Resize": self._free_resize,
        }

    def rewrite(self) -> None:
        """Frees inputs, nodes and outputs."""
        names = {dim.dim_param for value in self._graph.input for dim in value.type.tensor_type.shape.dim}
        batch = fresh_name("batch", names)
        for value in self._graph.input:
            trial = onnx.TypeProto()
            trial.CopyFrom(value.type)
            trial.tensor_type.shape.dim[0].dim_value = self._rows * _TIMES
            self._types[value.name] = trial
            value.type.tensor_type.shape.dim[0].dim_param = batch
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            rule = self._rules.get(node.op_type)
            for written in (*(rule(node) if rule else ()), node):
                self._infer(written)
                nodes.append(written)
        for value in self._graph.output:
            if self._axis(value.name) != 0:
                raise UnsupportedModelError(f"output {quote(value.name)} does not grow with the batch")
            value.type.tensor_type.shape.dim[0].dim_param = batch
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        del self._graph.value_info[:]

    def _infer(self, node: onnx.NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        names = [name for name in node.input if name]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in names},
                {name: self._constants[name] for name in names if self._is_short(name)},
                opset_imports=[helper.make_opsetid("", self._opset)],
            )
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, KeyError) as error:
            raise UnsupportedModelError(f"{label(node)} holds on to the batch") from error
        self._types.update(found)

    def _axis(self, name: str) -> int | None:
        """The axis of a tensor that grows with the batch."""
        before, now = self._before.get(name, ()), self._now(name)
        if len(before) != len(now):
            return None
        grown = [
            axis
            for axis, (old, new) in enumerate(zip(before, now, strict=True))
            if old is not None and new is not None and old != new
        ]
        return grown[0] if len(grown) == 1 else None

    def _now(self, name: str) -> _Shape:
        return _sizes(self._types[name]) if name in self._types else ()

    def _constant(self, name: str, value: NDArray[np.int64]) -> str:
        tensor = numpy_helper.from_array(value, fresh_name(name, self._taken))
        self._graph.initializer.append(tensor)
        self._constants[tensor.name] = tensor
        self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        return tensor.name

    def _is_short(self, name: str) -> bool:
        """Whether a tensor is a constant that may be a shape, and no weights."""
        return name in self._constants and math.prod(self._constants[name].dims) <= _LONGEST_SHAPE

    def _integers(self, name: str) -> list[int] | None:
        if not self._is_short(name):
            return None
        return [int(size) for size in numpy_helper.to_array(self._constants[name]).ravel()]

    def _free_reshape(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Lets the target's dimension that holds the batch take what is left.

        Elements keep their order, so the batch is in the first dimension of the target with as many elements before
        it as there are before the batch in the input.
        """
        target, axis = self._integers(node.input[1]), self._axis(node.input[0])
        if target is None or axis is None:
            return []
        source, result = self._before[node.input[0]], self._before.get(node.output[0], ())
        if len(result) != len(target):
            return []
        place = _after(source[:axis], result)
        if place is None:
            raise UnsupportedModelError(f"{label(node)} mixes the batch with other dimensions")
        same = place == axis and target[place] == source[axis]
        if target[place] == -1 or (target[place] == 0 and place == axis):
            return []
        others = [size for number, size in enumerate(result) if number != place]
        if same and not any(a.name == "allowzero" and a.i for a in node.attribute):
            # A zero copies the input's dimension, and another dimension may stay open.
            freed = [0 if number == place else size for number, size in enumerate(target)]
        elif None not in others:
            freed = [-1 if number == place else int(size or 0) for number, size in enumerate(result)]
        else:
            raise UnsupportedModelError(f"{label(node)} mixes the batch with another free dimension")
        node.input[1] = self._constant(node.input[1], np.array(freed, np.int64))
        return []

    def _free_expand(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """A target of 1 keeps the input's dimension."""
        target, axis = self._integers(node.input[1]), self._axis(node.input[0])
        if target is None or axis is None:
            return []
        place = axis + len(target) - len(self._now(node.input[0]))
        if place >= 0 and target[place] == self._rows != 1:
            target[place] = 1
            node.input[1] = self._constant(node.input[1], np.array(target, np.int64))
        return []

    def _free_concat(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Repeats what has one row, such as a token that every sequence begins with, for each row of the batch."""
        axes = {name: axis for name in node.input if (axis := self._axis(name)) is not None}
        if not axes or len(set(axes.values())) > 1:
            return []
        carrier, axis = next(iter(axes.items()))
        joined = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        if joined % len(self._now(carrier)) == axis:
            return []
        return [
            added
            for place, name in enumerate(node.input)
            if name not in axes
            for added in self._repeated(node, place, axis, carrier)
        ]

    def _free_states(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Repeats initial states and lengths of one row for each row of the batch."""
        carrier = node.input[0]
        if self._axis(carrier) != 1:
            return []
        return [
            added
            for place, axis in _RECURRENT_STATES.items()
            if place < len(node.input) and node.input[place] and self._axis(node.input[place]) is None
            for added in self._repeated(node, place, axis, carrier)
        ]

    def _repeated(self, node: onnx.NodeProto, place: int, axis: int, carrier: str) -> list[onnx.NodeProto]:
        """Nodes that repeat an input of one row along `axis`, as often as `carrier` has rows; the input is replaced."""
        name = node.input[place]
        rank = len(self._now(name))
        if self._now(name)[axis] != 1:
            raise UnsupportedModelError(f"{label(node)} joins the batch with {quote(name)} of other rows")
        start = self._axis(carrier)
        if start is None:
            raise UnsupportedModelError(f"{label(node)} joins the batch with {quote(name)}")
        count, target, result = (
            fresh_name(f"{name}_{suffix}", self._taken) for suffix in ("rows", "shape", "repeated")
        )
        parts = [count]
        if axis:
            parts.insert(0, self._constant(f"{name}_before", np.ones(axis, np.int64)))
        if axis + 1 < rank:
            parts.append(self._constant(f"{name}_after", np.ones(rank - axis - 1, np.int64)))
        node.input[place] = result
        return [
            helper.make_node("Shape", [carrier], [count], start=start, end=start + 1),
            helper.make_node("Concat", parts, [target], axis=0),
            helper.make_node("Expand", [name, target], [result]),
        ]

    def _free_resize(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Names the sizes of the axes after batch and channels alone."""
        sizes = self._integers(node.input[3]) if len(node.input) > 3 else None
        given = {attribute.name for attribute in node.attribute}
        if sizes is None or "axes" in given or self._axis(node.input[0]) != 0:
            return []
        rank = len(sizes)
        if self._opset < _OLDEST_RESIZE_WITH_AXES or rank < 3 or sizes[1] != self._now(node.input[0])[1]:
            raise UnsupportedModelError(f"{label(node)} holds on to the batch")
        node.attribute.append(helper.make_attribute("axes", list(range(2, rank))))
        node.input[3] = self._constant(node.input[3], np.array(sizes[2:], np.int64))
        return []


def _after(before: _Shape, result: _Shape) -> int | None:
    """The first place in `result` that has as many elements before it as `before` holds."""
    if None in before:
        return None
    wanted = math.prod(size or 0 for size in before)
    for place in range(len(result)):
        if None in result[:place]:
            return None
        if math.prod(size or 0 for size in result[:place]) == wanted:
            return place
    return None


def _sizes(kind: onnx.TypeProto) -> _Shape:
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
