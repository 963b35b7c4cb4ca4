"""Watches the FP32 model run on the samples and keeps a histogram of every tensor that will be quantized.

One forward pass with the tensors as extra outputs. Each batch's tensors are counted and freed before the next
batch runs, so memory does not grow with the number of samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from engines.calibration.histogram import Histogram
from engines.errors import CalibrationError
from engines.model.model import Model
from engines.model.tensors import Array
from engines.runtimes.reference import ReferenceSession

BATCH_ROWS = 4
"""Rows of a calibration batch. Fixed, because the last digits of activations depend on it; small, because all
observed tensors of a batch are in memory at once (ResNet-50: 120 MB a row)."""


def observe(
    model: Model,
    tensors: Sequence[str],
    batches: Iterable[Mapping[str, Array]],
    *,
    threads: int,
    progress: Callable[[int], None],
) -> dict[str, Histogram]:
    """Histograms of `tensors`, any floating tensors of `model`, over all batches.

    `progress` is called with the number of rows seen so far after every batch. The last digits of an activation
    depend on the rows that share its batch, so give batches of one canonical size for results that can be
    repeated bit for bit.

    Raises:
        CalibrationError: a tensor held NaN or infinity.
        EngineRunError: the model failed on a batch.
    """
    session = ReferenceSession(model.proto, outputs=tensors, threads=threads, fused=True)
    histograms = dict.fromkeys(tensors, Histogram.empty())
    rows = 0

    def add(item: tuple[str, Array]) -> None:
        name, values = item
        try:
            histograms[name] = histograms[name].merge(Histogram.of(values))
        except CalibrationError as error:
            raise CalibrationError(
                f"the FP32 model's own tensor {name!r} is not finite on the samples ({error}, within rows {rows} to "
                f"{rows + count - 1}); check the model with these samples before quantizing it."
            ) from error

    with ThreadPoolExecutor(threads) as pool:
        for feeds in batches:
            count = len(next(iter(feeds.values())))
            # Kernels run without the interpreter's lock, each tensor in one thread.
            list(pool.map(add, session.run(feeds).items()))
            rows += count
            progress(rows)
    return histograms
