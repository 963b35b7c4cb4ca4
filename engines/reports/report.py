"""The report of a build: what was asked, what was made, how it was proven, and what it costs to run."""

import contextlib
import enum
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import pydantic

from engines.errors import InvalidArtifactError
from engines.fidelity.accuracy import Accuracy
from engines.fidelity.contract import Clause
from engines.options import CalibrationMethod, Contract, Precision
from engines.reports.details import EngineLayersReport, HistogramReport, LatencyReport, LayerErrors
from engines.reports.details import ReportPart as _Part
from engines.search.choices import Choices, Layers

FEW_ROWS = 32
"""Fewer verify rows than these are weak evidence: a model that fails one row in twenty passes on them, one time
in five. The fifth percentile of fewer is hardly more than their worst row."""
_GPU_LIBRARIES = ("tensorrt", "pycuda", "cuda-bindings")
"""There where octet was installed for NVIDIA GPUs."""
_LIBRARIES = ("octet", "openvino", "onnxruntime", "onnx", "numpy")


class Verdict(enum.StrEnum):
    """What came of the build."""

    ACCEPTED = "accepted"
    """The engine that was asked for reproduced its proof and serves."""
    REFUSED = "refused"
    """The 8-bit engine may not answer; FP32 serves instead."""
    BELOW_CONTRACT = "below_contract"
    """The 8-bit engine misses its contract and serves all the same, as the build asked."""


class OutputReport(_Part):
    """`engines.fidelity.accuracy.OutputAccuracy`, for one output of the compiled engine."""

    name: str
    rows: int
    sqnr_db: float | None
    sqnr_lower_db: float | None
    row_sqnr_p5_db: float | None
    variation_sqnr_db: float | None
    cosine: float | None
    cosine_lower: float | None
    max_abs_error: float | None
    peak: float | None
    top1_agreement: float | None
    top1_weighted: float | None
    equal_share: float | None
    elements: int
    nonfinite: int


class ClauseReport(_Part):
    """`engines.fidelity.contract.Clause`: one thing that the contract asks of one output of the 8-bit engine."""

    output: str
    # The field of OutputReport that it is about.
    measure: str
    value: float
    # The least value; of `max_abs_error`, the largest.
    limit: float
    # One-sided 95% bound of the value on more such rows.
    lower: float | None
    rows: int
    holds: bool
    # How far within the limit.
    margin_db: float


class EngineReport(_Part):
    """One compiled engine against FP32, or against the model as it arrived where it was quantized already."""

    holds: bool
    # Why it may not answer.
    miss: str | None
    # The contract's metric, or SQNR in decibels under the default contract; None where the engine did not run.
    value: float | None
    outputs: tuple[OutputReport, ...]
    # Of the 8-bit engine.
    clauses: tuple[ClauseReport, ...] = ()


class IntervalReport(_Part):
    """A two-sided 95% interval."""

    low: float
    high: float


class TaskReport(_Part):
    """Top-1 accuracy on labelled verify rows: no contract counts it."""

    # The output that holds the classes.
    output: str
    rows: int
    fp32_top1: float
    fp32_interval: IntervalReport
    # None where the 8-bit engine was not built or did not run, as are the fields after it.
    quantized_top1: float | None = None
    quantized_interval: IntervalReport | None = None
    # Rows that the 8-bit engine alone has right, and wrong.
    gained_rows: int | None = None
    lost_rows: int | None = None
    # 8-bit less FP32, by the same rows.
    difference: float | None = None
    difference_interval: IntervalReport | None = None


class Evidence(_Part):
    """How much the proof rests on."""

    calibrate_rows: int
    tune_rows: int
    verify_rows: int
    # Of the verify rows, those that are sealed in the proof.
    proof_rows: int
    # Whether no row was used twice.
    disjoint: bool
    # Why the evidence is weak, where it is.
    weak: str | None


class Batching(_Part):
    """Whether rows of different requests may share a batch."""

    batchable: bool
    reason: str | None
    # Rows that the uploaded model insists on; None where its batch is free.
    uploaded_rows: int | None = None
    # Whether that fixed batch was made free, proven against the uploaded model's own answers.
    rewritten: bool = False
    # Why a fixed batch stays as it is.
    stays_fixed: str | None = None
    # The input that masks the padding with which rows of different lengths share a batch.
    mask: str | None = None
    # Why they do not, where a length is free.
    unpadded: str | None = None


class Sizes(_Part):
    """Sizes of the model files."""

    uploaded_bytes: int
    prepared_bytes: int
    quantized_bytes: int | None


class ArrivedReport(_Part):
    """Of a model that was uploaded quantized: its own answers are the reference, and nothing was calibrated."""

    # The tool that wrote the file, as it calls itself.
    producer: str | None
    # Layers that multiply 8 bits by 8 bits, and those that do not.
    layers: int
    floating_layers: int
    # Q and DQ nodes that have a zero point, or UINT8.
    asymmetric: int
    # For information: the engine without rounding against the model as it arrived.
    without_pairs: tuple[OutputReport, ...]


class ThresholdReport(_Part):
    """The clipping threshold of one activation."""

    threshold: float
    # Largest magnitude that was seen.
    absmax: float
    method: CalibrationMethod


class Hardware(_Part):
    """Where the proof was made."""

    runtime: str
    key: str
    weight_bits: int
    threads: int
    processor: str


class Report(_Part):
    """See the module. Figures are those of compiled engines on `hardware`."""

    format: int = 2
    verdict: Verdict
    # Why the 8-bit engine does not serve, where it does not.
    reason: str | None
    requested: Precision
    serving: Precision
    contract: Contract
    fp32: EngineReport
    # The 8-bit engine; None where there is none.
    quantized: EngineReport | None
    evidence: Evidence
    # Where labels were uploaded.
    task: TaskReport | None = None
    batching: Batching
    sizes: Sizes
    layers: Layers
    # What the 8-bit model was chosen from; None where there was nothing to choose.
    choices: Choices | None
    thresholds: dict[str, ThresholdReport]
    # Whether the runtime only imitates the 8-bit type of the quantized engine, in wider arithmetic: it answers like
    # hardware that has the type, and is no faster than FP32.
    emulated: bool
    latencies: tuple[LatencyReport, ...]
    hardware: Hardware
    versions: dict[str, str]
    # None of a model that octet quantized itself.
    arrived: ArrivedReport | None = None
    # Seconds that each phase took.
    phases: dict[str, float]
    # What a person has to know before they use the version, a sentence each.
    warnings: tuple[str, ...] = ()
    layer_errors: LayerErrors | None = None
    # None where the runtime does not tell, as OpenVINO's.
    engine_layers: EngineLayersReport | None = None
    # Of the activations that lose most in 8 bits, the worst first.
    histograms: tuple[HistogramReport, ...] = ()

    def save(self, path: Path) -> None:
        """Writes the report as JSON."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a report.

        Raises:
            InvalidArtifactError: it is missing or damaged.
        """
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise InvalidArtifactError(
                f"{path.name!r} is missing; restore it or build the version again."
            ) from error

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads a report's JSON.

        Raises:
            InvalidArtifactError: it is damaged.
        """
        try:
            return cls.model_validate_json(content)
        except pydantic.ValidationError as error:
            raise InvalidArtifactError(
                "the report is damaged; restore it or build the version again."
            ) from error

    @property
    def floating_name(self) -> str:
        """What the engine is called that `fp32` and the latencies are of."""
        return "FP32" if self.arrived is None else "Without rounding"

    @property
    def speedup(self) -> float | None:
        """How many times as fast as FP32 the 8-bit engine is, at the largest batch that was timed.

        None where there is none, or where it is emulated: its time says nothing about 8 bits.
        """
        return None if self.emulated or not self.latencies else self.latencies[-1].speedup

    def summary(self) -> dict[str, Any]:
        """The figures that are shown wherever the version is, of the engine that serves."""
        engine = self.fp32 if self.serving is Precision.FP32 or self.quantized is None else self.quantized

        def worst(metric: str) -> float | None:
            return min((v for o in engine.outputs if (v := getattr(o, metric)) is not None), default=None)

        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "precision": self.serving.value,
            "sqnr_db": worst("sqnr_db"),
            "cosine": worst("cosine"),
            "top1_agreement": worst("top1_agreement"),
            "batchable": self.batching.batchable,
            "weak_evidence": self.evidence.weak,
            "warnings": list(self.warnings),
            "emulated": self.emulated and self.serving is not Precision.FP32,
            "speedup": self.speedup if self.serving is not Precision.FP32 else None,
            "fp32_bytes": self.sizes.prepared_bytes,
            "quantized_bytes": self.sizes.quantized_bytes,
            "arrived_quantized": self.arrived is not None,
            "fp32_top1": self.task and self.task.fp32_top1,
            "quantized_top1": self.task and self.task.quantized_top1,
        }


def weak_evidence(
    *, verify_rows: int, proof_rows: int, disjoint: bool, doubts: Iterable[str] = ()
) -> str | None:
    """Why the evidence is weak, or None where it is not; `doubts` are those of the contract."""
    reasons = []
    if not disjoint:
        reasons.append("the samples are too few to keep some aside, so the proof uses rows that calibrated")
    if proof_rows < FEW_ROWS:
        reasons.append(f"the proof has {proof_rows} rows, fewer than {FEW_ROWS}")
    reasons.extend(doubts)
    if not reasons:
        return None
    more = "" if proof_rows < verify_rows else "; upload more samples"
    return " and ".join(reasons) + more


def output_reports(accuracy: Accuracy | None) -> tuple[OutputReport, ...]:
    """The accuracy of each output, for the report."""
    if accuracy is None:
        return ()
    return tuple(OutputReport.model_validate(vars(output)) for output in accuracy.outputs)


def clause_reports(clauses: Iterable[Clause]) -> tuple[ClauseReport, ...]:
    """The clauses of a contract, for the report."""
    return tuple(
        ClauseReport.model_validate(
            vars(clause) | {"holds": clause.holds, "margin_db": round(clause.margin_db, 3)}
        )
        for clause in clauses
    )


def versions() -> dict[str, str]:
    """Versions of octet and of the libraries that figures depend on."""
    found = {name: metadata.version(name) for name in _LIBRARIES}
    for name in _GPU_LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
