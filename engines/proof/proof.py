"""The proof of a version: inputs, FP32's answers to them, the contract and the hashes of what was proven.

It is sealed once, when a version is built, and replayed by every engine before it may answer: on other hardware,
after a change of driver or library, after a restore. FP32's answers are onnxruntime's for the model as it was
uploaded, so preparation is proven along with quantization and the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engines.errors import CalibrationError, EngineError, EngineRunError, InvalidArtifactError
from engines.fidelity.accuracy import Accuracy, Comparison
from engines.fidelity.contract import Clause, clauses, contract_miss, contract_value
from engines.model.tensors import Array
from engines.options import Contract, Metric, Precision
from engines.phases.batched_reference import Reference
from engines.proof.batches import ProofBatch, answered, stored
from engines.proof.company import (
    EIGHT_BIT_DB,
    FP32_DB,
    HALF_DB,
    TRIAL_ROWS,
    Run,
    eight_bit_least_db,
    influence,
)
from engines.proof.padding import NO_LENGTH, Padding, padding_harm, prove_padding
from engines.proof.sealed import read_sealed, sha256, write_sealed
from engines.runtimes.base import Engine
from engines.samples.sample_set import SampleView
from engines.workspace import QUANTIZED

FP32_MIN_DB = 40.0
"""What FP32 engines must reach on every floating output: summing in another order costs far less."""
FP32_MAX_ZERO_ERROR = 1e-5
"""What they may leave of a sum that is zero throughout, where decibels have no meaning."""
FP32_MIN_EQUAL = 0.99
"""And on outputs of integers, which may flip where two floats are nearly equal."""
HALF_MIN_DB = 30.0
"""What FP32 engines must reach where the uploaded model computes in 16-bit floats: each rounding of the uploaded
model, about 2^-12 or 70 dB below the value, is noise that its engines do not repeat; a hundred layers add up to 50."""
HALF_MIN_EQUAL = 0.9
"""And on its outputs of integers: rounded scores are equal where the engine's are not."""

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How an engine did on a proof."""

    precision: Precision
    # None where the engine failed to run.
    accuracy: Accuracy | None
    # The contract's metric, where the engine ran; of the default contract, SQNR in decibels (contract_value).
    value: float | None
    # What the contract asks, and what was measured; of an 8-bit engine that ran.
    clauses: tuple[Clause, ...] = ()
    # Why the engine may not answer; None where it may.
    miss: str | None
    # Why rows may not share a batch; None where they may.
    unbatchable: str | None
    # Why rows of different lengths may not, padded as the proof says; None where they may.
    unpadded: str | None

    @property
    def holds(self) -> bool:
        """Whether the engine reproduced the proof."""
        return self.miss is None

    @classmethod
    def failed(cls, precision: Precision, error: EngineError) -> Self:
        """Of an engine that could not be compiled or run."""
        why = str(error).rstrip(".")
        return cls(precision=precision, accuracy=None, value=None, miss=why, unbatchable=why, unpadded=why)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What an engine has to reproduce before it may answer."""

    batches: tuple[ProofBatch, ...]
    contract: Contract
    # SHA-256 in hex of the artifact's files, by workspace name.
    hashes: Mapping[str, str]
    # Whether batches of other sizes may be run.
    free_rows: bool
    # Whether the upload was quantized already: its own answers are the reference, FP32's there are none of.
    arrived: bool = False
    # Why rows may not share a batch, seen on FP32 already; None where they may.
    unbatchable: str | None
    # How rows of different lengths share a batch, or why FP32 says that they may not.
    padding: Padding | str = "it was not tried"
    # Whether the uploaded model computes in 16-bit floats, whose roundings no engine repeats.
    half: bool = False

    @property
    def rows(self) -> int:
        """Rows that count."""
        return sum(batch.rows for batch in self.batches)

    @property
    def longest(self) -> ProofBatch:
        """The batch with the largest rows, where they differ in size."""
        return _longest(self.batches)

    @classmethod
    def seal(
        cls,
        reference: Reference,
        samples: SampleView,
        contract: Contract,
        artifact: Mapping[str, Path],
        *,
        arrived: bool = False,
        half: bool = False,
    ) -> Self:
        """Lets FP32 answer the verify rows, as far as they fit, and seals them with the artifact's hashes.

        Args:
            reference: the model as it was uploaded; of a free batch where the artifact's is.
            samples: rows that nothing was chosen on.
            contract: what an 8-bit engine must keep.
            artifact: the files to be proven, by workspace name.
            arrived: whether the model was uploaded quantized.
            half: whether the uploaded model computes in 16-bit floats.

        Raises:
            CalibrationError: FP32 answers NaN, or fails on the rows.
        """
        fixed_rows = next((s.fixed_rows for s in reference.inputs if s.fixed_rows is not None), None)
        try:
            batches = tuple(answered(reference, samples, fixed_rows))
            answers = [batch.outputs for batch in batches]
            exact_db = HALF_DB if half else FP32_DB
            least_db = EIGHT_BIT_DB if arrived else exact_db
            unbatchable = _influence(reference.run, batches, answers, least_db, free_rows=fixed_rows is None)
            padding = _padding(reference, batches, least_db, unbatchable)
        except EngineRunError as error:
            raise CalibrationError(
                f"the FP32 model does not run on the samples: {error} Check the model with them."
            ) from error
        return cls(
            batches=batches,
            contract=contract,
            hashes={name: sha256(path) for name, path in artifact.items()},
            free_rows=fixed_rows is None,
            arrived=arrived,
            unbatchable=unbatchable,
            padding=padding,
            half=half,
        )

    def replay(self, engine: Engine, precision: Precision) -> Verification:
        """Runs an engine on the proof.

        An 8-bit engine must keep the contract. An FP32 engine must give FP32's answers up to rounding
        (`FP32_MIN_DB`, `FP32_MIN_EQUAL`), whatever the contract is; but where the model arrived quantized, every
        engine must keep the contract against the model as it arrived.

        Raises:
            InvalidOptionsError: the contract's metric does not fit the model.
        """
        comparison = Comparison()
        answers: list[Mapping[str, Array]] = []
        fp32 = precision is Precision.FP32 and not self.arrived
        try:
            for batch in self.batches:
                answers.append(engine.run(batch.inputs))
                comparison.add(batch.counted(batch.outputs), batch.counted(answers[-1]))
            accuracy = comparison.result()
            least_db = self.least_db(precision, accuracy)
            unbatchable = self.unbatchable or _influence(
                engine.run, self.batches, answers, least_db, free_rows=self.free_rows
            )
            unpadded = unbatchable or self._harm(engine, least_db)
        except EngineRunError as error:
            return Verification.failed(precision, error)
        return Verification(
            precision=precision,
            accuracy=accuracy,
            value=contract_value(accuracy, self.contract),
            clauses=() if fp32 else clauses(accuracy, self.contract),
            miss=fp32_miss(accuracy, half=self.half)
            if fp32
            else contract_miss(accuracy, self.contract, self._name(precision)),
            unbatchable=unbatchable,
            unpadded=unpadded,
        )

    def _harm(self, engine: Engine, least_db: float) -> str | None:
        if isinstance(self.padding, str):
            return self.padding
        try:
            return padding_harm(engine.run, self.padding, self.longest.inputs, least_db=least_db)
        except EngineRunError as error:
            return f"the engine does not run shorter rows: {str(error).rstrip('.')}"

    def _name(self, precision: Precision) -> str:
        if precision is not Precision.FP32:
            return "the 8-bit engine"
        return "the engine without rounding" if QUANTIZED in self.hashes else "the engine"

    def least_db(self, precision: Precision, accuracy: Accuracy) -> float:
        """How alike two answers of an engine of this accuracy have to be, see `engines.proof.company`."""
        if precision is not Precision.FP32 or self.arrived:
            return eight_bit_least_db(accuracy)
        return HALF_DB if self.half else FP32_DB

    def check(self, folder: Path) -> None:
        """Checks that the artifact's files in `folder` are those that were sealed.

        Raises:
            InvalidArtifactError: one is missing or was changed.
        """
        for name, sealed in self.hashes.items():
            path = folder / name
            if not path.is_file():
                raise InvalidArtifactError(
                    f"the artifact lacks {name!r}; restore it or build the version again."
                )
            found = sha256(path)
            if found != sealed:
                raise InvalidArtifactError(
                    f"{name!r} is not the file that was proven (its SHA-256 starts with {found[:12]}, the sealed one "
                    f"with {sealed[:12]}); restore it or build the version again."
                )

    def save(self, path: Path) -> None:
        """Writes the proof, atomically."""
        header = {
            "format": _FORMAT,
            "contract": self.contract.model_dump(mode="json"),
            "hashes": dict(self.hashes),
            "free_rows": self.free_rows,
            "arrived": self.arrived,
            "unbatchable": self.unbatchable,
            "half": self.half,
            "padding": self.padding if isinstance(self.padding, str) else self.padding.to_json(),
            "batches": [
                {"rows": batch.rows, "inputs": list(batch.inputs), "outputs": list(batch.outputs)}
                for batch in self.batches
            ],
        }
        arrays = {
            f"{number}.{role}.{place}": array
            for number, batch in enumerate(self.batches)
            for role, tensors in (("in", batch.inputs), ("out", batch.outputs))
            for place, array in enumerate(tensors.values())
        }
        write_sealed(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a proof.

        Raises:
            InvalidArtifactError: it is missing, damaged, changed, or of another version of octet.
        """
        header, arrays = read_sealed(path)
        if header.get("format") != _FORMAT:
            raise InvalidArtifactError(
                f"{path.name!r} has the format {header.get('format')}, this octet reads {_FORMAT}; build the "
                "version again."
            )
        return cls(
            batches=tuple(stored(number, entry, arrays) for number, entry in enumerate(header["batches"])),
            contract=Contract.model_validate(header["contract"]),
            hashes=header["hashes"],
            free_rows=header["free_rows"],
            arrived=header.get("arrived", False),
            unbatchable=header["unbatchable"],
            half=header.get("half", False),
            padding=Padding.of_json(header.get("padding", "it was not tried")),
        )


def _influence(
    run: Run,
    batches: Sequence[ProofBatch],
    answers: Sequence[Mapping[str, Array]],
    least_db: float,
    *,
    free_rows: bool,
) -> str | None:
    """Why rows may not share a batch, tried on the batch with the most rows that count."""
    fullest = max(range(len(batches)), key=lambda number: batches[number].rows)
    batch = batches[fullest]
    if batch.size == 1 and not free_rows:
        # Rows that are always alone cannot influence each other.
        return None
    if batch.rows == 1:
        return "one verify row cannot show that rows do not influence each other; upload more samples"
    rows = min(batch.rows, TRIAL_ROWS) if free_rows else batch.size
    inputs = {name: array[:rows] for name, array in batch.inputs.items()}
    outputs = {
        name: array[:rows] if len(array) == batch.size else array for name, array in answers[fullest].items()
    }
    return influence(run, inputs, outputs, least_db=least_db, free_rows=free_rows)


def _padding(
    reference: Reference, batches: Sequence[ProofBatch], least_db: float, unbatchable: str | None
) -> Padding | str:
    """How rows may be padded, tried on the longest ones."""
    if all(None not in spec.item_shape for spec in reference.inputs):
        return NO_LENGTH
    if unbatchable is not None or any(spec.fixed_rows is not None for spec in reference.inputs):
        return unbatchable or "the model's batch is fixed"
    try:
        return prove_padding(reference.run, reference.inputs, _longest(batches).inputs, least_db=least_db)
    except EngineRunError as error:
        return f"the model does not run shorter rows: {str(error).rstrip('.')}"


def _longest(batches: Sequence[ProofBatch]) -> ProofBatch:
    return max(batches, key=lambda batch: sum(array[0].size for array in batch.inputs.values()))


def fp32_miss(accuracy: Accuracy, *, half: bool = False) -> str | None:
    """Why an FP32 engine of this accuracy may not answer; None where it may. `half` is that of `Proof`."""
    least_equal, least_db = (HALF_MIN_EQUAL, HALF_MIN_DB) if half else (FP32_MIN_EQUAL, FP32_MIN_DB)
    for output in accuracy.outputs:
        value = output.value(Metric.SQNR_DB)
        if output.silent and not output.nonfinite:
            # The noise of such an output is rounding alone.
            if (output.max_abs_error or 0.0) > FP32_MAX_ZERO_ERROR:
                return f"the FP32 engine's output {output.name!r} is {output.max_abs_error:g} where FP32's is zero"
            continue
        if output.equal_share is not None and output.equal_share < least_equal:
            return f"the FP32 engine gives {output.equal_share:.1%} of output {output.name!r} as FP32 did"
        if output.equal_share is None and value is not None and value < least_db:
            return f"the FP32 engine's output {output.name!r} is {value:.1f} dB from FP32's, under {least_db:g} dB"
    return None
