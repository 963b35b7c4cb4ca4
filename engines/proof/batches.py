"""The rows of a proof: batches of inputs with FP32's answers to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.errors import CalibrationError
from engines.model.tensors import Array
from engines.phases.batched_reference import Reference
from engines.samples.sample_set import SampleView

PROOF_ROWS = 32
"""Rows of a batch of the proof, where the model's batch is free."""
MAX_PROOF_BYTES = 64 << 20
"""Size of a proof. Batches beyond are left out; the first one is always there."""


@dataclass(frozen=True, kw_only=True)
class ProofBatch:
    """One batch of the proof, all rows of one shape."""

    inputs: Mapping[str, Array]
    # FP32's answers.
    outputs: Mapping[str, Array]
    # Rows that count; what follows them only fills the batch.
    rows: int

    @property
    def size(self) -> int:
        """Rows of the batch, those that fill it included."""
        return len(next(iter(self.inputs.values())))

    def counted(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of this batch without those of the rows that fill it."""
        return {
            name: array[: self.rows] if len(array) == self.size else array for name, array in outputs.items()
        }


def answered(reference: Reference, samples: SampleView, fixed_rows: int | None) -> Iterator[ProofBatch]:
    """FP32's answers to the rows, until the proof is full."""
    size = fixed_rows or min(PROOF_ROWS, samples.rows, _rows_within(MAX_PROOF_BYTES // 2, samples))
    left_bytes = MAX_PROOF_BYTES
    batches = samples.batches(size, whole=True)
    for number, (inputs, rows) in enumerate(zip(batches, samples.batch_rows(size), strict=True)):
        outputs = reference.run(inputs)
        left_bytes -= sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        if number and left_bytes < 0:
            return
        for name, array in outputs.items():
            if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
                raise CalibrationError(
                    f"the FP32 model itself answers NaN in output {name!r} on the samples; check the model with them."
                )
        yield ProofBatch(inputs=inputs, outputs=outputs, rows=rows)


def _rows_within(limit_bytes: int, samples: SampleView) -> int:
    """How many of the first row's size `limit_bytes` hold, at least one."""
    first = next(iter(samples.batches(1)))
    return max(1, limit_bytes // sum(array.nbytes for array in first.values()))


def stored(number: int, entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> ProofBatch:
    def tensors(role: str, names: list[str]) -> dict[str, Array]:
        return {name: arrays[f"{number}.{role}.{place}"] for place, name in enumerate(names)}

    return ProofBatch(
        inputs=tensors("in", entry["inputs"]), outputs=tensors("out", entry["outputs"]), rows=entry["rows"]
    )
