"""Brings the thresholds of a placement together where tensors must share one scale."""

from collections.abc import Mapping
from dataclasses import replace

from engines.quantization.concatenation import SharedScale
from engines.quantization.placement import Placement, QuantizedActivation

MOST_COARSENED = 2.0
"""How many times its own threshold the one that a layer's input shares may be: it costs one bit of eight. Concats
that ask for more keep the one pair behind them."""


def settle(placement: Placement, thresholds: Mapping[str, float]) -> tuple[Placement, dict[str, float]]:
    """The placement and thresholds in which tensors of one `SharedScale` have one threshold: the largest of theirs.

    Where a layer's input would be coarsened too much, the Concats are taken out of the placement instead and all
    keep their own. Settling twice changes nothing.

    Args:
        placement: as `place` gives it.
        thresholds: by tensor, of at least the placement's tensors; 0 for one that was 0 throughout.
    """
    unified = dict(thresholds)
    split: set[str] = set()
    for scale in placement.shared:
        widest = max(thresholds[tensor] for tensor in scale.tensors)
        if any(
            0 < thresholds[tensor] * MOST_COARSENED < widest for tensor in _read_by_layers(placement, scale)
        ):
            split |= scale.nodes
        else:
            unified.update(dict.fromkeys(scale.tensors, widest))
    if not split:
        return placement, unified
    activations = (
        QuantizedActivation(
            tensor=activation.tensor,
            uses=tuple(use for use in activation.uses if use.node not in split),
        )
        for activation in placement.activations
    )
    kept = replace(
        placement,
        activations=tuple(activation for activation in activations if activation.uses),
        shared=tuple(scale for scale in placement.shared if not scale.nodes & split),
    )
    return kept, unified


def _read_by_layers(placement: Placement, scale: SharedScale) -> list[str]:
    return [
        activation.tensor
        for activation in placement.activations
        if activation.tensor in scale.tensors and any(use.node not in scale.nodes for use in activation.uses)
    ]
