"""Channels that no scale can serve: a few inputs of a matrix product that reach hundreds of times the others.

Smoothing moves range between a channel's activation and its weights, but what it moves, the product of both ranges,
stays. A channel whose product towers over the others' sets the step of all of them, whatever the smoothing. Such
channels leave the 8-bit product and are added in floating point (Dettmers et al. 2022, arXiv:2208.07339, does so
with whole decompositions at run time; here the channels are known when the model is built):

    y = (x with the channels set to 0) W + x[..., channels] W[channels, :]
"""

import numpy as np
from numpy.typing import NDArray

OUTLIER_RATIO = 30.0
"""How many times the median product a channel has to reach: others are served by smoothing."""
MOST_OUTLIERS = 4
"""Channels to separate at most: each costs a pass over the product's output in floating point."""


def outlier_channels(absmax: NDArray[np.floating], weight_absmax: NDArray[np.floating]) -> NDArray[np.int64]:
    """The channels to separate, worst first, `MOST_OUTLIERS` of them at most.

    Args:
        absmax: [K], the largest magnitude of each channel of the activation.
        weight_absmax: [K], the largest magnitude among the weights of each channel.
    """
    product = absmax.astype(np.float64) * weight_absmax
    used = product[product > 0]
    if not len(used):
        return np.zeros(0, np.int64)
    order = np.argsort(-product, kind="stable")
    count = int(np.count_nonzero(product > OUTLIER_RATIO * np.median(used)))
    return order[: min(count, MOST_OUTLIERS)].astype(np.int64)
