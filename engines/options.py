"""What a build may be asked for; everything has a default."""

import enum
from collections.abc import Iterable
from typing import Annotated, Any, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engines.errors import InvalidOptionsError


class Precision(enum.StrEnum):
    """The number format of the engine's weights and activations."""

    INT8 = "int8"
    """Symmetric 8-bit integers."""
    FP8 = "fp8"
    """8-bit floats with 4 bits of exponent and 3 of mantissa (E4M3)."""
    FP32 = "fp32"
    """The model as it was uploaded: a baseline, or a fallback."""


class CalibrationMethod(enum.StrEnum):
    """How an activation's range becomes a clipping threshold."""

    ENTROPY = "entropy"
    """The threshold whose quantized distribution diverges least from the observed one."""
    MAX = "max"
    """The largest magnitude seen: nothing is clipped."""
    MSE = "mse"
    """The threshold at which 8 bits reproduce the tensor with the least squared error."""
    PERCENTILE = "percentile"
    """The magnitude that 99.99% of the non-zero values do not exceed."""
    AUTO = "auto"
    """Tensor by tensor, what the observed distribution speaks for."""


FP8_METHODS = frozenset({CalibrationMethod.AUTO, CalibrationMethod.MAX, CalibrationMethod.MSE})
"""Clipping costs FP8 much and wins it nothing, and ENTROPY and PERCENTILE do nothing else."""


class Metric(enum.StrEnum):
    """What a contract is written in."""

    SQNR_DB = "sqnr_db"
    """Signal to quantization noise of every floating output, in decibels; the worst output counts."""
    COSINE = "cosine"
    """Mean cosine similarity of output rows; the worst output counts."""
    TOP1_AGREEMENT = "top1_agreement"
    """Share of rows whose highest class is FP32's."""
    EQUAL_SHARE = "equal_share"
    """Share of elements that equal FP32's, of outputs that are not floating; the worst output counts."""


_LEAST_DB = 20.0
_LEAST_SHARE = 0.99


class OnMiss(enum.StrEnum):
    """What becomes of a build whose 8-bit engine misses its contract on the tune samples, or in the proof."""

    MIX = "mix"
    """The fewest layers that keep the contract stay floating; where even that misses, FP32 serves."""
    FAIL = "fail"
    """The build fails and says why; nothing is published."""
    PUBLISH = "publish"
    """The 8-bit engine serves all the same, and the report says that it is below its contract."""


class Effort(enum.StrEnum):
    """How long a build may look for a better 8-bit model."""

    FAST = "fast"
    """One calibration, weights rounded to the nearest, a minute at most for mixed precision."""
    STANDARD = "standard"
    """Channels evened out, thresholds of several kinds and fitted weights, each kept where the tune samples say that
    it helps; ten minutes at most for mixed precision."""
    THOROUGH = "thorough"
    """Fitted weights for every kind of threshold; an hour at most for mixed precision."""


class Rest(enum.StrEnum):
    """What TensorRT computes in where it does not compute in 8 bits."""

    FP16 = "fp16"
    """16-bit floats, but for nodes whose values they do not hold."""
    FP32 = "fp32"
    """32-bit floats."""


class RuntimeName(enum.StrEnum):
    """What compiles and runs the engine."""

    AUTO = "auto"
    """TensorRT where the machine has a GPU that it runs on, else OpenVINO."""
    OPENVINO = "openvino"
    """The processor."""
    TENSORRT = "tensorrt"
    """An NVIDIA GPU; refused where there is none."""


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Contract(_Options):
    """The accuracy that a version must keep against FP32."""

    # What is measured. None is the default contract: several clauses, which engines.fidelity.contract explains.
    metric: Metric | None = None
    # Least value of the metric at which the engine may answer; of the default contract, least SQNR in decibels.
    min: float = Field(default=_LEAST_DB, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_min(cls, given: Any) -> Any:
        if (
            isinstance(given, dict)
            and "min" not in given
            and given.get("metric") not in (None, Metric.SQNR_DB)
        ):
            return {**given, "min": _LEAST_SHARE}
        return given

    @pydantic.model_validator(mode="after")
    def _check_min(self) -> Self:
        if self.metric not in (None, Metric.SQNR_DB) and self.min > 1:
            raise ValueError(
                f"{self.metric} is 1 at most, so no engine reaches {self.min:g}; ask for 1 or less."
            )
        return self


class Batching(_Options):
    """Limits of the queue in front of a version's engine. All limits count rows, not requests."""

    # Rows that one run of the engine takes at most.
    max_batch_rows: int = Field(default=32, ge=1, le=4096)
    # How long the oldest row may wait for company while the engine is idle; 0 sends it at once.
    max_queue_delay_us: int = Field(default=0, ge=0, le=10_000_000)
    # Rows that may wait; a request beyond that gets 429 at once.
    max_queue_rows: int = Field(default=2048, ge=1, le=1_000_000)
    # How long a request may take before it is answered with 504.
    timeout_ms: int = Field(default=30_000, ge=1, le=3_600_000)


class ShapeProfile(_Options):
    """The shapes of one input that an engine is compiled for, the batch axis included."""

    # The smallest, the one to be fastest at, and the largest.
    min: tuple[Annotated[int, Field(ge=1)], ...]
    opt: tuple[Annotated[int, Field(ge=1)], ...]
    max: tuple[Annotated[int, Field(ge=1)], ...]

    @pydantic.model_validator(mode="after")
    def _rise(self) -> Self:
        sides = (self.min, self.opt, self.max)
        if len({len(side) for side in sides}) > 1 or any(
            not low <= usual <= high for low, usual, high in zip(*sides, strict=True)
        ):
            raise ValueError(
                f"the profile min {list(self.min)}, opt {list(self.opt)}, max {list(self.max)} does not rise in every "
                "dimension; give three shapes of one length, none smaller than the one before."
            )
        return self


class BuildOptions(_Options):
    """The options of one build."""

    precision: Precision = Precision.INT8
    calibration: CalibrationMethod = CalibrationMethod.AUTO
    contract: Contract = Contract()
    on_miss: OnMiss = OnMiss.MIX
    effort: Effort = Effort.STANDARD
    batching: Batching = Batching()
    runtime: RuntimeName = RuntimeName.AUTO
    # TensorRT alone has a choice.
    rest: Rest = Rest.FP16
    # Of inputs with free dimensions, for runtimes that compile for a range of shapes (TensorRT). By default the batch
    # goes up to `batching.max_batch_rows`, and other free dimensions up to 512.
    profile: dict[str, ShapeProfile] = Field(default_factory=dict)
    # Whether the version becomes the model's default once it is published.
    promote: bool = True

    @field_validator("precision", mode="before")
    @classmethod
    def _know_e5m2(cls, precision: object) -> object:
        if isinstance(precision, str) and "e5m2" in precision.lower():
            raise ValueError(
                f"{precision!r} asks for E5M2, in which values can be stored but which no engine here computes with; "
                'use "fp8", which is E4M3.'
            )
        return precision

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if self.precision is Precision.FP8 and self.calibration not in FP8_METHODS:
            raise ValueError(
                f"calibration {self.calibration.value!r} clips values, which wins nothing in fp8 and can cost 10 dB; "
                'use "auto", "max" or "mse" with fp8.'
            )
        return self

    @classmethod
    def parse(cls, options: dict[str, Any] | str | bytes) -> Self:
        """Checks options that came from outside, as JSON text or as a mapping.

        Raises:
            InvalidOptionsError: an option is unknown or out of range; the message names the first one.
        """
        try:
            if isinstance(options, (str, bytes)):
                return cls.model_validate_json(options)
            return cls.model_validate(options)
        except pydantic.ValidationError as error:
            raise InvalidOptionsError(_explain(error, known=cls.model_fields)) from error


def _explain(error: pydantic.ValidationError, *, known: Iterable[str]) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown option {where!r}; known options: {', '.join(known)}."
    if first["type"] == "json_invalid":
        return f'the options are not valid JSON ({first["msg"]}); send an object such as {{"precision": "int8"}}.'
    if first["type"] == "value_error":
        # A sentence of ours, as the validators above raise it.
        return str(first["ctx"]["error"])
    name = f"option {where!r}" if where else "the options"
    return f"{name} cannot be {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
