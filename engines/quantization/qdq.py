"""Writes a placement into the graph as explicit Q/DQ nodes, the form that every runtime reads.

    activation -> QuantizeLinear -> INT8 or FP8 -> DequantizeLinear -> its quantized consumers
    weights as INT8 or FP8 initializer -> DequantizeLinear (a scale per output channel) -> the layer

Weights are stored as codes, a quarter of the size; a DequantizeLinear on a constant stands for the pair.
Zero points are 0 and of the type of the codes, as TensorRT demands.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.errors import UnsupportedModelError
from engines.formats import Codes, quantize_weights, weight_scales
from engines.model.model import Model, from_proto
from engines.model.tensors import Array
from engines.options import Precision
from engines.preparation.tidying import fresh_name
from engines.quantization.placement import Placement, QuantizedWeight
from engines.quantization.reconstruction import LayerWeights
from engines.quantization.scheme import Scheme, scheme_of


def quantize_model(
    model: Model,
    placement: Placement,
    thresholds: Mapping[str, float],
    *,
    weight_bits: int,
    weights: Mapping[str, LayerWeights] | None = None,
    precision: Precision = Precision.INT8,
) -> Model:
    """The 8-bit model: `placement` with the clipping threshold of every activation it names.

    Args:
        model: a prepared FP32 model; not changed.
        placement: what is quantized.
        thresholds: by tensor; 0 for a tensor that was 0 throughout.
        weight_bits: 8, or 7 for processors whose sums of INT8 products would saturate.
        weights: by node, weights that were fitted to the layer's inputs; others are rounded to the nearest.
        precision: the 8-bit type; `weights` are of it.

    Raises:
        UnsupportedModelError: the model's opset has no quantization per channel to this type.
        ValueError: tensors that share a scale have several thresholds.
    """
    scheme = scheme_of(precision, weight_bits=weight_bits)
    if model.opset < scheme.first_opset:
        raise UnsupportedModelError(
            f"the model has opset {model.opset}, and weights are quantized to {scheme.name} per channel from opset "
            f"{scheme.first_opset} on; export it with a newer opset."
        )
    for scale in placement.shared:
        found = {thresholds[tensor] for tensor in scale.tensors}
        if len(found) > 1:
            raise ValueError(
                f"the tensors {sorted(scale.tensors)} share one scale, but have {len(found)} thresholds; bring them "
                "together with engines.quantization.scales.settle."
            )
    return _Writer(model, scheme).write(placement, thresholds, weights or {})


class _Writer:
    def __init__(self, model: Model, scheme: Scheme) -> None:
        self._scheme = scheme
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(model.proto)
        graph = self._proto.graph
        self._nodes = {node.name: node for node in graph.node}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        self._names.update(self._constants)
        # New nodes, by the name of the old node that they go in front of.
        self._before: dict[str, list[onnx.NodeProto]] = {}

    def write(
        self,
        placement: Placement,
        thresholds: Mapping[str, float],
        fitted: Mapping[str, LayerWeights],
    ) -> Model:
        order = {node.name: place for place, node in enumerate(self._proto.graph.node)}
        for activation in placement.activations:
            dequantized = self._pair(
                activation.tensor,
                self._scheme.activation_grid(thresholds[activation.tensor]).scale,
                before=min((use.node for use in activation.uses), key=order.__getitem__),
            )
            for use in activation.uses:
                self._nodes[use.node].input[use.index] = dequantized
        shared: dict[tuple[str, int], tuple[str, str, str]] = {}
        for weight in placement.weights:
            node = self._nodes[weight.use.node]
            key = (weight.initializer, weight.axis)
            if node.name in fitted:
                encoded = self._fitted(weight, node, fitted[node.name])
            else:
                if key not in shared:
                    shared[key] = self._encoded(weight)
                encoded = shared[key]
            node.input[weight.use.index] = self._dequantized(weight, encoded)
        self._insert()
        self._drop_unused()
        return from_proto(self._proto)

    def _pair(self, tensor: str, scale: np.float32, *, before: str) -> str:
        """Q and DQ of `tensor` in front of the node `before`; returns the dequantized tensor."""
        parameters = [
            self._constant(f"{tensor}_scale", np.asarray(scale)),
            self._codes(f"{tensor}_zero_point", np.zeros((), np.uint8)),
        ]
        codes, result = self._name(f"{tensor}_quantized"), self._name(f"{tensor}_dequantized")
        self._before.setdefault(before, []).extend(
            [
                self._node("QuantizeLinear", [tensor, *parameters], codes),
                self._node("DequantizeLinear", [codes, *parameters], result),
            ]
        )
        return result

    def _encoded(self, weight: QuantizedWeight) -> tuple[str, str, str]:
        """Weights rounded to the nearest code."""
        values = numpy_helper.to_array(self._constants[weight.initializer])
        grid = self._scheme.weights
        scales = weight_scales(values, weight.axis, grid)
        return self._stored(weight, quantize_weights(values, scales, weight.axis, grid), scales)

    def _fitted(
        self, weight: QuantizedWeight, node: onnx.NodeProto, found: LayerWeights
    ) -> tuple[str, str, str]:
        """Weights that were fitted to this node's inputs, and their shift of its bias."""
        if found.bias_shift is not None:
            bias = node.input[2] if len(node.input) > 2 else ""
            value = found.bias_shift
            if bias:
                value = numpy_helper.to_array(self._constants[bias]) + value
            name = self._constant(f"{bias or node.output[0]}_shifted", value.astype(np.float32))
            del node.input[2:]
            node.input.append(name)
        return self._stored(weight, found.codes, found.scales)

    def _stored(
        self, weight: QuantizedWeight, codes: Codes, scales: NDArray[np.float32]
    ) -> tuple[str, str, str]:
        """Stores codes, scales and zero points as initializers and returns their names."""
        name = weight.initializer
        return (
            self._codes(f"{name}_quantized", codes),
            self._constant(f"{name}_scale", scales),
            self._codes(f"{name}_zero_point", np.zeros(scales.shape, np.uint8)),
        )

    def _dequantized(self, weight: QuantizedWeight, encoded: tuple[str, str, str]) -> str:
        result = self._name(f"{weight.initializer}_dequantized")
        node = self._node("DequantizeLinear", list(encoded), result, axis=weight.axis)
        self._before.setdefault(weight.use.node, []).append(node)
        return result

    def _constant(self, name: str, value: Array) -> str:
        name = self._name(name)
        self._proto.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _codes(self, name: str, codes: Codes) -> str:
        """Stores codes of the scheme's type; numpy knows them as bytes."""
        name = self._name(name)
        element_type, content = self._scheme.element_type, codes.tobytes()
        self._proto.graph.initializer.append(
            helper.make_tensor(name, element_type, codes.shape, content, raw=True)
        )
        return name

    def _node(
        self, operator: str, inputs: list[str], output: str, *, axis: int | None = None
    ) -> onnx.NodeProto:
        node = helper.make_node(operator, inputs, [output], name=self._name(f"{output}_node"))
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        return node

    def _name(self, wanted: str) -> str:
        """`wanted`, numbered where the model has that name already."""
        return fresh_name(wanted, self._names)

    def _insert(self) -> None:
        def in_order() -> Iterator[onnx.NodeProto]:
            for node in self._proto.graph.node:
                yield from self._before.get(node.name, [])
                yield node

        nodes = list(in_order())
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(nodes)

    def _drop_unused(self) -> None:
        """Takes out the FP32 weights that nothing reads any more."""
        graph = self._proto.graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
