"""Quantizes with NVIDIA's Model Optimizer; runs inside its environment.

Reads {"model", "samples", "target"} as JSON from standard input; answers {"version"}.
"""

import json
import sys

import modelopt
import numpy as np
from modelopt.onnx import quantization


def main() -> None:
    """INT8 as its documentation recommends, with what is not quantized in FP32."""
    job = json.load(sys.stdin)
    with np.load(job["samples"]) as archive:
        samples = dict(archive)
    quantization.quantize(
        job["model"],
        quantize_mode="int8",
        calibration_data=samples,
        # Thresholds do not matter here.
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=job["target"],
        log_level="ERROR",
    )
    print(f"\n{json.dumps({'version': modelopt.__version__})}")


if __name__ == "__main__":
    main()
