"""Quantizes with NNCF, which reads ONNX through OpenVINO and writes OpenVINO's own format."""

import nncf
import openvino

from loadtests.peers.job import Job, carry_out
from loadtests.peers.settings import Setting

# None leaves the choice to NNCF.
_PRESETS = {Setting.NNCF_TRANSFORMER_SYMMETRIC: nncf.QuantizationPreset.PERFORMANCE}


def quantize(job: Job) -> None:
    """All samples, one at a time, as its documentation asks."""
    rows = list(job.batches(1))
    quantized = nncf.quantize(
        openvino.Core().read_model(job.model),
        nncf.Dataset(rows),
        subset_size=len(rows),
        model_type=None if job.setting is Setting.NNCF_DEFAULT else nncf.ModelType.TRANSFORMER,
        preset=_PRESETS.get(job.setting),
    )
    openvino.save_model(quantized, job.target, compress_to_fp16=False)


if __name__ == "__main__":
    carry_out(quantize)
