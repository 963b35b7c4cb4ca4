"""NVIDIA Triton through pytriton: a front end in C++, batches of at most 32 rows from a Python process."""

import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from loadtests.fronts.model import FEATURES, SCORES, scores


@batch
def infer(x: Any) -> dict[str, Any]:
    """One batch."""
    return {"scores": scores(x)}


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="tiny",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(FEATURES,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(SCORES,))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)),
        )
        triton.serve()
