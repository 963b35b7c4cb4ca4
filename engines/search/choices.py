"""What a build tried before it settled on an 8-bit model: for the report, and for whoever reads its layers."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pydantic
from pydantic import BaseModel, ConfigDict

from engines.errors import InvalidArtifactError
from engines.options import CalibrationMethod

if TYPE_CHECKING:
    # For whoever reads a report, onnx is much to load.
    from engines.quantization.placement import Placement


class Variant(enum.StrEnum):
    """How a model was rewritten before it was quantized."""

    PREPARED = "prepared"
    """Not at all."""
    EVENED = "evened"
    """The channels of its activations were evened out, and outlier channels separated."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SkippedLayerReport(_Part):
    """A layer with weights that stays floating."""

    node: str
    operator: str
    reason: str


class Layers(_Part):
    """What runs in 8 bits, by node name, and what does not."""

    quantized: tuple[str, ...] = ()
    skipped: tuple[SkippedLayerReport, ...] = ()

    @classmethod
    def of(cls, placement: "Placement") -> Self:
        """The layers of a placement."""
        return cls(
            quantized=tuple(weight.use.node for weight in placement.weights),
            skipped=tuple(
                SkippedLayerReport(node=layer.node, operator=layer.operator, reason=layer.reason)
                for layer in placement.skipped
            ),
        )


class CandidateReport(_Part):
    """One 8-bit model that was compiled and compared with FP32 on the tune samples."""

    # How the FP32 model was rewritten before.
    variant: Variant
    calibration: CalibrationMethod
    # Whether the weights were fitted to the samples; else they are rounded to the nearest.
    fitted: bool
    # Whether the products of queries and keys are in 8 bits.
    attention: bool
    # Of the worst output; None where the runtime could not run it.
    sqnr_db: float | None
    # Median time of a batch of the tune samples.
    batch_ms: float | None
    size_bytes: int


class MixedPoint(_Part):
    """One 8-bit model of the search for mixed precision."""

    # Names of the nodes that stay floating beyond those that always do.
    floating: tuple[str, ...]
    # How far above the contract it is, over all clauses of the contract; it holds from 0 on.
    margin_db: float | None
    # What is left of that after what other rows may need: the search takes only what has 0 or more. None also in
    # reports that were written before it was kept.
    assured_db: float | None = None
    sqnr_db: float | None
    batch_ms: float | None
    size_bytes: int
    chosen: bool


class MixedReport(_Part):
    """The search for the fewest layers to leave floating."""

    # Groups of layers that read one quantizer: they stay floating together or not at all.
    groups: int
    # Models that were compiled and compared, and the most that would have been.
    evaluations: int
    budget: int
    # Whether it was the time that set the budget, so that a faster machine may have found fewer layers.
    timed: bool = False
    # Whether the chosen model keeps the contract on the tune samples, with the margin that others may need.
    meets: bool
    # Names of the nodes that were left floating.
    left_floating: tuple[str, ...]
    # A menu: everything that was measured, in the order of measuring.
    points: tuple[MixedPoint, ...]


class Choices(_Part):
    """What was tried, and what was chosen of it."""

    candidates: tuple[CandidateReport, ...]
    # Which of them.
    chosen: int
    # None where the chosen candidate keeps the contract as it is.
    mixed: MixedReport | None


class QuantizationRecord(_Part):
    """What the phase that quantizes leaves to the report."""

    # None where no layer can run in 8 bits, so that there was nothing to try.
    choices: Choices | None
    layers: Layers

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a record.

        Raises:
            InvalidArtifactError: the file is missing or damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, pydantic.ValidationError) as error:
            raise InvalidArtifactError(
                f"{path.name!r} is missing or damaged; build the version again."
            ) from error
