"""BatchNormalization folded into the convolution before it.

With s = scale / sqrt(variance + epsilon), normalising the output of a convolution with weights W and bias b is a
convolution with weights s·W and bias s·(b - mean) + shift (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2). Computed in float64, rounded once.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.preparation.tidying import fresh_name, tensor_names, use_counts

_FOLDED_TYPES = (np.dtype(np.float32), np.dtype(np.float64))
_EPSILON = 1e-5


def fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Folds each BatchNormalization that is the only reader of a Conv or ConvTranspose with constant weights.

    The convolution gets weights and a bias of its own, so initializers that others share stay as they are.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = use_counts(graph)
    taken = tensor_names(graph)
    folded = []
    for place, norm in enumerate(graph.node):
        conv = producers.get(norm.input[0]) if _is_inference_norm(norm) else None
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or uses[conv.output[0]] != 1:
            continue
        names = [*conv.input[1:], *norm.input[1:]]
        if any(name and name not in constants for name in names):
            continue
        arrays = {name: numpy_helper.to_array(constants[name]) for name in names if name}
        if any(array.dtype not in _FOLDED_TYPES for array in arrays.values()):
            continue
        result = _folded(conv, norm, arrays)
        if result is None:
            continue
        added = [
            numpy_helper.from_array(array, fresh_name(f"{conv.input[1]}_{suffix}", taken))
            for suffix, array in zip(("folded", "folded_bias"), result, strict=True)
        ]
        graph.initializer.extend(added)
        constants.update((tensor.name, tensor) for tensor in added)
        source = conv.input[0]
        del conv.input[:]
        conv.input.extend([source, *(tensor.name for tensor in added)])
        conv.output[0] = norm.output[0]
        producers[norm.output[0]] = conv
        folded.append(place)
    for place in reversed(folded):
        del graph.node[place]


def _is_inference_norm(node: onnx.NodeProto) -> bool:
    training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    outputs = [name for name in node.output if name]
    return node.op_type == "BatchNormalization" and len(outputs) == 1 and not training


def _folded(
    conv: onnx.NodeProto, norm: onnx.NodeProto, arrays: dict[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """New weights and bias, or None where the fold would not stay finite."""
    weight = arrays[conv.input[1]]
    scale, shift, mean, variance = (arrays[name].astype(np.float64) for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), _EPSILON)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        old_bias = arrays[conv.input[2]].astype(np.float64) if len(conv.input) > 2 and conv.input[2] else 0.0
        bias = ((old_bias - mean) * factor + shift).astype(weight.dtype)
        new_weight = (weight * _along_outputs(conv, weight, factor)).astype(weight.dtype)
    if not (np.isfinite(bias).all() and np.isfinite(new_weight).all()):
        return None
    return new_weight, bias


def _along_outputs(conv: onnx.NodeProto, weight: NDArray[Any], factor: NDArray[Any]) -> NDArray[Any]:
    """The factor of each output channel, shaped to multiply the weights.

    Weights are [outputs, inputs / group, ...] for Conv and [inputs, outputs / group, ...] for ConvTranspose.
    """
    ones = (1,) * (weight.ndim - 2)
    if conv.op_type == "Conv":
        return factor.reshape(-1, 1, *ones)
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    per_input = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
    return per_input.reshape(*per_input.shape, *ones)
