"""A plain FP32 forward pass in onnxruntime as anybody would run it; runs inside the peers' environment.

Reads {"model", "samples", "batch_rows", "threads"} as JSON from standard input; answers {"wall_s", "rows"}.
"""

import json
import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    """One pass to warm up, one that is timed."""
    job = json.load(sys.stdin)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    with np.load(job["samples"]) as archive:
        samples = dict(archive)
    rows = len(next(iter(samples.values())))
    batches = [
        {name: values[start : start + job["batch_rows"]] for name, values in samples.items()}
        for start in range(0, rows, job["batch_rows"])
    ]
    session.run(None, batches[0])
    start_s = time.perf_counter()
    for feeds in batches:
        session.run(None, feeds)
    print(f"\n{json.dumps({'wall_s': time.perf_counter() - start_s, 'rows': rows})}")


if __name__ == "__main__":
    main()
