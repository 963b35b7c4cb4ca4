"""Quantizes with NNCF, which reads ONNX through OpenVINO and writes OpenVINO's own format."""

import nncf
import openvino

from loadtests.peers.job import Job, carry_out
from loadtests.peers.settings import Setting


def quantize(job: Job) -> None:
    """All samples, one at a time, as its documentation asks."""
    rows = list(job.batches(1))
    quantized = nncf.quantize(
        openvino.Core().read_model(job.model),
        nncf.Dataset(rows),
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER if job.setting is Setting.NNCF_TRANSFORMER else None,
    )
    openvino.save_model(quantized, job.target, compress_to_fp16=False)


if __name__ == "__main__":
    carry_out(quantize)
