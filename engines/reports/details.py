"""Parts of a report that go into detail: what runs cost, where the error comes from, what activations look like."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, computed_field

SLOWER = 1.05
"""Times FP32's latency from which the 8-bit engine is called slower: two runs of one engine differ by less."""


class ReportPart(BaseModel):
    """Base of all parts of a report: plain values that never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HistogramReport(ReportPart):
    """What was observed of one activation, in few enough bins to be drawn."""

    tensor: str
    # Counts of magnitudes, bin i from i to i + 1 times `bin_width`; exact zeros are counted apart.
    counts: tuple[int, ...]
    bin_width: float
    zeros: int
    absmax: float
    threshold: float
    # SQNR of the tensor in 8 bits at its threshold, as the histogram foretells it.
    sqnr_db: float


class LayerError(ReportPart):
    """How far the output of one quantized layer is from FP32's: its own error and what it was handed."""

    node: str
    operator: str
    sqnr_db: float


class LayerErrors(ReportPart):
    """The error of each quantized layer, in graph order, as the ONNX standard computes the 8-bit model."""

    # Tune rows that it was measured on.
    rows: int
    layers: tuple[LayerError, ...] = ()


class EngineLayersReport(ReportPart):
    """What the runtime made of the 8-bit model: fused layers, and the types that they compute in."""

    # How many layers compute in which type.
    by_type: dict[str, int]
    # Names of the layers that compute in 8 bits.
    eight_bit: tuple[str, ...]
    # Names of the quantizers that became layers of their own: they cost time instead of saving it.
    alone: tuple[str, ...]


class LatencyReport(ReportPart):
    """Median time of one run of the engine, nothing in front of it."""

    # What is computed is written and, when it comes back, computed again.
    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: int
    fp32_ms: float
    quantized_ms: float | None

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorated property
    @property
    def fp32_rows_per_s(self) -> float:
        """Throughput of FP32, one run after the other."""
        return round(self.rows / self.fp32_ms * 1e3, 1)

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorated property
    @property
    def quantized_rows_per_s(self) -> float | None:
        """Throughput of the 8-bit engine."""
        return None if self.quantized_ms is None else round(self.rows / self.quantized_ms * 1e3, 1)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as FP32 the 8-bit engine is."""
        return None if self.quantized_ms is None else self.fp32_ms / self.quantized_ms


def speed_warnings(
    latencies: Sequence[LatencyReport], *, emulated: bool, arrived: bool = False
) -> tuple[str, ...]:
    """The warning that 8 bits cost time here instead of saving it; empty where they do not, at any batch.

    `arrived` says that the model was uploaded quantized: it has no FP32 to be built in.
    """
    slower = [
        f"{_ms(found.quantized_ms)} against {_ms(found.fp32_ms)} for batches of {found.rows}"
        for found in latencies
        if found.quantized_ms is not None and found.quantized_ms > SLOWER * found.fp32_ms
    ]
    if not slower:
        return ()
    other = "the graph without its rounding" if arrived else "FP32"
    warning = f"The 8-bit engine is slower than {other} on this machine: {' and '.join(slower)}. "
    if emulated:
        remedy = "upload the FP32 model" if arrived else "build with precision int8"
        warning += f"It is emulated here: serve it on hardware that computes in its type, or {remedy}."
    else:
        remedy = "Upload the FP32 model" if arrived else "Build with precision fp32"
        warning += f"{remedy}, unless the smaller file is what you are after."
    return (warning,)


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
