"""Products with constant weights, written as the plain matrix products that runtimes have 8-bit kernels for.

Two forms hide one. Weights with a batch of one in front, [1, K, N], come of converters that write every dense layer as
a batched product. Einsum is what Keras' EinsumDense and `torch.einsum` become; where it multiplies an activation by
weights and sums over axes that both have and the result lacks, it is a product of two matrices, up to axes that are
merged, split or moved.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.preparation.tidying import fresh_name, remove_dead_nodes, tensor_names

_EQUATION = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]+)")


def plain_products(graph: onnx.GraphProto) -> None:
    """Rewrites the graph in place; it must have the shapes that can be inferred."""
    _Products(graph).rewrite()
    remove_dead_nodes(graph)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """Einsum of an activation and weights, by the letters of its axes."""

    activation: str
    weights: str
    result: str

    @property
    def summed(self) -> str:
        return "".join(axis for axis in self.weights if axis not in self.result)

    @property
    def rows(self) -> str:
        return "".join(axis for axis in self.activation if axis not in self.weights)

    @property
    def columns(self) -> str:
        return "".join(axis for axis in self.weights if axis in self.result)

    @property
    def plain(self) -> bool:
        """Whether it sums over all that both operands share and over nothing else, and keeps the rest once."""
        terms = (self.activation, self.weights, self.result)
        return (
            all(len(set(term)) == len(term) for term in terms)
            and set(self.summed) == set(self.activation) & set(self.weights)
            and set(self.result) == {*self.rows, *self.columns}
            and bool(self.rows and self.columns and self.summed)
        )


class _Products:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants: Mapping[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in graph.initializer
        }
        self._tensors = tensor_names(graph)
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info)
            if value.type.tensor_type.HasField("shape")
        }
        # Matrices that stand for weights of more axes, by their names and letters.
        self._matrices: dict[tuple[str, str], str] = {}

    def rewrite(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            if node.op_type == "MatMul":
                self._flatten_weights(node)
            nodes += self._product(node) if node.op_type == "Einsum" else [node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)

    def _flatten_weights(self, node: onnx.NodeProto) -> None:
        """Takes the leading ones off the shape of a MatMul's weights, unless the result has them from there."""
        weights = self._constants.get(node.input[1])
        if weights is None or len(weights.dims) <= 2 or math.prod(weights.dims[:-2]) != 1:
            return
        if self._ranks.get(node.input[0], 0) >= len(weights.dims):
            value = numpy_helper.to_array(weights).reshape(tuple(weights.dims[-2:]))
            node.input[1] = self._matrix(node.input[1], "", value)

    def _product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What stands for an Einsum: itself, where it is no product of an activation with a matrix."""
        equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
        found = _EQUATION.fullmatch(equation.replace(" ", ""))
        if found is None or len(node.input) != 2:
            return [node]
        first, second, result = found.groups()
        tensor, weights = node.input
        if tensor in self._constants:
            tensor, weights, first, second = weights, tensor, second, first
        product = _Product(activation=first, weights=second, result=result)
        if weights not in self._constants or tensor in self._constants or not product.plain:
            return [node]
        return self._multiplied(node.output[0], tensor, weights, product)

    def _multiplied(self, output: str, tensor: str, weights: str, product: _Product) -> list[onnx.NodeProto]:
        value = numpy_helper.to_array(self._constants[weights])
        sizes = dict(zip(product.weights, value.shape, strict=True))
        order = product.summed + product.columns
        depth, width = (math.prod(sizes[axis] for axis in part) for part in (product.summed, product.columns))
        matrix = value.transpose([product.weights.index(axis) for axis in order]).reshape(depth, width)
        # Every step that changes nothing is left out; 0 in a shape keeps the size that is there.
        kept = [0] * len(product.rows)
        chain = _Chain(self, output, tensor)
        chain.transpose(product.activation, product.rows + product.summed)
        if len(product.summed) > 1:
            chain.add("Reshape", self._constant(f"{output}_rows_shape", np.array([*kept, depth])))
        chain.add("MatMul", self._matrix(weights, product.weights + order, matrix))
        if len(product.columns) > 1:
            split = [*kept, *(sizes[axis] for axis in product.columns)]
            chain.add("Reshape", self._constant(f"{output}_shape", np.array(split)))
        chain.transpose(product.rows + product.columns, product.result)
        return chain.finished()

    def _matrix(self, weights: str, letters: str, value: NDArray[np.generic]) -> str:
        key = (weights, letters)
        if key not in self._matrices:
            self._matrices[key] = self._constant(f"{weights}_matrix", np.ascontiguousarray(value))
        return self._matrices[key]

    def _constant(self, wanted: str, value: NDArray[np.generic]) -> str:
        name = self.fresh(wanted)
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def fresh(self, wanted: str) -> str:
        """A tensor name that nobody has."""
        return fresh_name(wanted, self._tensors)


class _Chain:
    """Nodes of which each reads the one before."""

    def __init__(self, products: _Products, output: str, tensor: str) -> None:
        self._products = products
        self._output = output
        self._tensor = tensor
        self._nodes: list[onnx.NodeProto] = []

    def add(self, operator: str, *operands: str, **attributes: Any) -> None:
        name = self._products.fresh(f"{self._output}_{operator.lower()}")
        self._nodes.append(helper.make_node(operator, [self._tensor, *operands], [name], **attributes))
        self._tensor = name

    def transpose(self, axes: str, wanted: str) -> None:
        if axes != wanted:
            self.add("Transpose", perm=[axes.index(axis) for axis in wanted])

    def finished(self) -> list[onnx.NodeProto]:
        self._nodes[-1].output[0] = self._output
        return self._nodes
