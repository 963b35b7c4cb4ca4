"""One quantization inside the peers' environment: a job on standard input, an answer on standard output."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.peers.settings import Setting


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to quantize, and how."""

    setting: Setting
    model: Path
    # Inputs by name, a batch along axis 0 of each.
    samples: dict[str, Any]
    # Where the quantized model goes.
    target: Path

    def batches(self, rows: int) -> Iterator[dict[str, Any]]:
        """The samples in order, `rows` at a time."""
        count = len(next(iter(self.samples.values())))
        for start in range(0, count, rows):
            yield {name: values[start : start + rows] for name, values in self.samples.items()}


def carry_out(work: Callable[[Job], None]) -> None:
    """Does the job on standard input and answers with {"wall_s", "peak_bytes"}.

    The job is {"setting", "model", "samples", "target"} as JSON; the answer is the last line, after whatever
    the tools print.
    """
    asked = json.load(sys.stdin)
    with np.load(asked["samples"]) as archive:
        samples = dict(archive)
    job = Job(
        setting=Setting(asked["setting"]),
        model=Path(asked["model"]),
        samples=samples,
        target=Path(asked["target"]),
    )
    start = time.perf_counter()
    work(job)
    wall_s = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\n{json.dumps({'wall_s': wall_s, 'peak_bytes': peak_bytes})}")
