"""The FP32 models that may be quantized: all compute the same, some lose less in 8 bits.

Evening out the channels of activations (`engines.quantization.equalisation` between convolutions,
`engines.quantization.smoothing` in front of matrix products) makes new tensors, so each variant is calibrated on its
own, and the tune samples decide between them.
"""

import itertools
from collections.abc import Callable

from engines.calibration.channels import ChannelRange, observe_channels
from engines.calibration.observer import BATCH_ROWS
from engines.formats import WeightBits
from engines.model.model import Model
from engines.quantization import equalisation, smoothing
from engines.samples.importing import SampleView

EVENING_ROWS = 256
"""Samples that are enough to see how unlike the channels are: what is done about it is proven on others."""


def evened(
    model: Model, rows: SampleView, *, bits: WeightBits, threads: int, progress: Callable[[float], None]
) -> Model:
    """A model that computes the same, its channels evened out; `model` itself where nothing would help.

    Args:
        model: prepared.
        rows: to observe the channels on, `EVENING_ROWS` of them at most.
        bits: of the weights that it will be quantized with.
        threads: processors to use.
        progress: takes the share that is done, 0 to 1.

    Raises:
        CalibrationError: a tensor is not finite.
        EngineRunError: the model fails on the samples.
    """

    def observed(tensors: list[str], axis: int, start: float) -> dict[str, ChannelRange]:
        if not tensors:
            return {}
        size = model.fixed_rows or BATCH_ROWS
        batches = rows.batches(size, whole=model.fixed_rows is not None)
        return observe_channels(
            model,
            tensors,
            itertools.islice(batches, -(-EVENING_ROWS // size)),
            threads=threads,
            progress=lambda seen: progress(min(1.0, start + 0.5 * seen / EVENING_ROWS)),
            axis=axis,
        )

    convolutions = [group.tensor for group in equalisation.groups(model)]
    products = [group.tensor for group in smoothing.groups(model)]
    equalised = equalisation.equalise(
        model, observed(convolutions, equalisation.CHANNEL_AXIS, 0.0), bits=bits
    )
    return smoothing.smooth(equalised, observed(products, -1, 0.5), bits=bits)
