"""Where the error comes from: each quantized layer's output against FP32's, layer by layer.

Both models run as the ONNX standard says (onnxruntime), because a compiled engine keeps no tensors in between. The
figures point at layers; what the engine that serves is worth, only its proof says.
"""

import math
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from engines.calibration.observer import BATCH_ROWS
from engines.fidelity.accuracy import to_db
from engines.model.model import Model
from engines.model.tensors import Array
from engines.quantization.placement import LayerKind
from engines.reports.details import LayerError, LayerErrors
from engines.runtimes.reference import ReferenceSession
from engines.samples.importing import SampleView

MAX_ROWS = 16
"""A row holds thousands of elements of most layers' outputs: more rows move the figures by tenths of a decibel."""
BUDGET_S = 10.0
"""No batch begins after this time; the first one always does."""
_CHUNK = 1 << 20
"""Elements compared at a time, in float64."""


def layer_errors(
    reference: Model, quantized: Model, samples: SampleView, *, threads: int, budget_s: float = BUDGET_S
) -> LayerErrors:
    """SQNR of the output of every quantized layer, in graph order, over some rows.

    The error of a layer holds what it was handed by the layers before it. Memory is that of one batch of all these
    outputs, twice.

    Args:
        reference: the FP32 model that was quantized. A model that was rewritten for that (smoothing moves scales
            between tensors) has to be given as it was rewritten.
        quantized: what was made of it.
        samples: rows that neither calibrate nor prove.
        threads: processors to use.
        budget_s: see `BUDGET_S`.

    Raises:
        CompileError: onnxruntime cannot load one of the models.
        EngineRunError: one of them failed on a batch.
    """
    layers = quantized_layers(reference, quantized)
    if not layers:
        return LayerErrors(rows=0)
    right, found = (
        ReferenceSession(model.proto, outputs=list(layers), threads=threads)
        for model in (reference, quantized)
    )
    energies = {tensor: np.zeros(2) for tensor in layers}
    size = reference.fixed_rows or BATCH_ROWS
    rows = 0
    end_s = time.monotonic() + budget_s
    batches = samples.batches(size, whole=reference.fixed_rows is not None)
    for feeds, real_rows in zip(batches, samples.batch_rows(size), strict=True):
        _add(energies, right.run(feeds), found.run(feeds))
        rows += real_rows
        if rows >= MAX_ROWS or time.monotonic() > end_s:
            break
    return LayerErrors(
        rows=rows,
        layers=tuple(
            LayerError(node=node, operator=operator, sqnr_db=round(to_db(*energies[tensor]), 2))
            for tensor, (node, operator) in layers.items()
        ),
    )


def quantized_layers(reference: Model, quantized: Model) -> dict[str, tuple[str, str]]:
    """Name and operator of each layer whose weights are dequantized in `quantized`, by its output in `reference`.

    In graph order; layers, or outputs, that one of the models lacks are left out.
    """
    made = {output for node in quantized.proto.graph.node for output in node.output}
    dequantized = {
        node.output[0] for node in quantized.proto.graph.node if node.op_type == "DequantizeLinear"
    }
    layers = {
        node.name
        for node in quantized.proto.graph.node
        if node.op_type in LayerKind.__members__.values() and node.input[1] in dequantized
    }
    return {
        node.output[0]: (node.name, node.op_type)
        for node in reference.proto.graph.node
        if node.name in layers and node.output[0] in made
    }


def _add(
    energies: dict[str, NDArray[np.float64]], right: Mapping[str, Array], found: Mapping[str, Array]
) -> None:
    """Adds the energies of signal and noise of one batch."""
    for tensor in energies:
        signal, noise = right[tensor].reshape(-1), found[tensor].reshape(-1)
        for start in range(0, signal.size, _CHUNK):
            energies[tensor] += _energies(signal[start : start + _CHUNK], noise[start : start + _CHUNK])


def _energies(right: Array, found: Array) -> tuple[float, float]:
    """Sums of squares of `right` and of its difference to `found`, both [n].

    Elements that are not finite in FP32 are left out; where only 8 bits are not, the noise is infinite.
    """
    finite = np.isfinite(right)
    signal = right[finite].astype(np.float64)
    error = found[finite].astype(np.float64) - signal
    noise = float(np.dot(error, error))
    return float(np.dot(signal, signal)), noise if math.isfinite(noise) else math.inf
