"""Why octet quantizes other inputs of layers than NVIDIA's Model Optimizer does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from engines.model.wiring import producers

_THROUGH = frozenset({"Relu", "Clip", "BatchNormalization", "Identity", "Dropout"})
"""What stands between a convolution and the sum that it is a branch of."""
_MOVES = frozenset({"Resize", "MaxPool", "AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True, kw_only=True, order=True)
class QuantizedInput:
    """An input of a node that comes out of a DequantizeLinear."""

    operator: str
    # The first tensor that the node writes: it has the same name in both models.
    output: str
    index: int


class Wiring:
    """The FP32 graph that both quantize."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = producers(graph)
        self._constants = {tensor.name for tensor in graph.initializer}

    def has_constant(self, place: QuantizedInput) -> bool:
        """Whether the node multiplies by a constant."""
        return any(name in self._constants for name in self._makers[place.output].input[:2])

    def reads_softmax(self, place: QuantizedInput) -> bool:
        """Whether the node weights values with what a Softmax gave."""
        maker = self._makers.get(self._makers[place.output].input[0])
        return maker is not None and maker.op_type == "Softmax"

    def sums_convolution(self, place: QuantizedInput) -> bool:
        """Whether a branch of a sum is a convolution's."""
        return any("Conv" in kind for name in self._makers[place.output].input for kind in self._behind(name))

    def _behind(self, name: str) -> Iterator[str]:
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in _THROUGH:
            maker = self._makers.get(maker.input[0])
        if maker is not None:
            yield maker.op_type


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One kind of difference that is meant."""

    # Whether octet quantizes there, and the Model Optimizer does not; False for the reverse.
    by_octet: bool
    applies: Callable[[QuantizedInput, Wiring], bool]
    text: str


REASONS = (
    Reason(
        by_octet=False,
        applies=lambda place, _: place.operator in _MOVES,
        text="it multiplies nothing: what reads it is quantized there, and runtimes move that pair across it",
    ),
    Reason(
        by_octet=False,
        applies=lambda place, wiring: place.operator == "Add" and not wiring.sums_convolution(place),
        text="a residual sum of a transformer: it carries outliers from layer to layer, and 8 bits there have cost "
        "ViT-B 80 points of top-1",
    ),
    Reason(
        by_octet=False,
        applies=lambda place, _: place.operator == "LayerNormalization",
        text="it computes in floats, so that a pair in front of it only adds noise",
    ),
    Reason(
        by_octet=False,
        applies=lambda place, wiring: place.operator == "MatMul" and wiring.reads_softmax(place),
        text="softmax x V: with one symmetric scale for each factor it limits a sentence encoder to 26 dB alone",
    ),
    Reason(
        by_octet=True,
        applies=lambda place, wiring: place.operator in ("Gemm", "MatMul") and wiring.has_constant(place),
        text="the Model Optimizer judges the product by a batch of one row, a GEMV; octet serves batches",
    ),
    Reason(
        by_octet=True,
        applies=lambda place, wiring: (
            place.operator == "MatMul" and not wiring.has_constant(place) and not wiring.reads_softmax(place)
        ),
        text="queries x keys: a candidate that a build takes where the tune samples lose less than half a decibel",
    ),
)


def reason(place: QuantizedInput, wiring: Wiring, *, by_octet: bool) -> str | None:
    """Why only one of the two quantizes there; None where nobody has said."""
    found = (each.text for each in REASONS if each.by_octet == by_octet and each.applies(place, wiring))
    return next(found, None)


def quantized_inputs(proto: onnx.ModelProto) -> frozenset[QuantizedInput]:
    """All inputs of nodes that come out of a DequantizeLinear."""
    made = producers(proto.graph)
    return frozenset(
        QuantizedInput(operator=node.op_type, output=node.output[0], index=index)
        for node in proto.graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        for index, name in enumerate(node.input)
        if name in made and made[name].op_type == "DequantizeLinear"
    )
