"""Quantizes with onnxruntime.quantization."""

import tempfile
from pathlib import Path
from typing import Any

from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from loadtests.peers.job import Job, carry_out
from loadtests.peers.settings import Setting

_BATCH_ROWS = 8
_METHODS = {
    Setting.ORT_MINMAX: quantization.CalibrationMethod.MinMax,
    Setting.ORT_ENTROPY: quantization.CalibrationMethod.Entropy,
    Setting.ORT_PERCENTILE: quantization.CalibrationMethod.Percentile,
    Setting.ORT_SYMMETRIC: quantization.CalibrationMethod.MinMax,
    Setting.ORT_U8S8: quantization.CalibrationMethod.MinMax,
}


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, job: Job) -> None:
        self._rest = job.batches(_BATCH_ROWS)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rest, None)


def quantize(job: Job) -> None:
    """Optimizes the graph first, as its guide asks; weights per channel."""
    unsigned = job.setting is Setting.ORT_U8S8
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        # Symbolic shape inference gives up on some exports; it would change no number.
        quant_pre_process(job.model, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            job.target,
            _Reader(job),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"] if unsigned else None,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8 if unsigned else quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=_METHODS[job.setting],
            extra_options={"ActivationSymmetric": job.setting is Setting.ORT_SYMMETRIC},
        )


if __name__ == "__main__":
    carry_out(quantize)
