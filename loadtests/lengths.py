"""What padding brings to text of mixed lengths: `python -m loadtests.lengths`, about three minutes.

Serves MiniLM in INT8 to many clients, each with one sentence of natural length at a time, through octet's own batcher:
once with rows of different lengths sharing batches, padded as the proof says, and once with every length by itself,
as it is where padding is not proven. Both take turns in this process on the same engine. Needs the model, see
`scripts/export_minilm.py`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from engines.building import quantize
from engines.loading import LoadedEngine, load_engine
from engines.model.tensors import Array
from engines.options import Batching, BuildOptions, Effort
from loadtests.awaiting import submit
from loadtests.cases import MODELS
from service.batching.batch_sizes import BatchRules, batch_sizes
from service.batching.batcher import Batcher
from service.monitoring.metrics import Metrics, VersionMetrics
from service.processes.processors import processor_budget
from service.serving.warm_up import warm_up

# The second one meets no new shape, however rows are batched.
_ROUNDS = 2
# The full stop, the question mark and the exclamation mark in BERT's vocabulary.
_SENTENCE_ENDS = (1012, 1029, 999)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One load through one batcher."""

    rows_per_s: float
    p50_ms: float
    p99_ms: float
    batch_rows: float


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = arguments().parse_args()
    case = MODELS["MiniLM"]
    if not case.model.exists():
        print(f"{case.model} is not there: {case.remedy}.")
        return 2
    threads = processor_budget()
    with tempfile.TemporaryDirectory(prefix="octet-loadtest-") as folder:
        asked = BuildOptions(effort=Effort.FAST, batching=Batching(timeout_ms=600_000))
        quantize(case.model, [case.calibration], Path(folder), asked, threads=threads)
        loaded = load_engine(Path(folder), asked, threads=threads)
        requests = sentences(case.calibration.with_name("score.npz"))
        rounds, warm_up_s = asyncio.run(compare(loaded, asked, requests, options))
    lengths = [next(iter(request.values())).shape[1] for request in requests]
    print(
        f"{len(requests)} sentences, {min(lengths)} to {max(lengths)} tokens, {np.mean(lengths):.0f} on average; "
        f"{options.clients} clients, {threads} threads; warm-up of all padded shapes {warm_up_s:.1f} s"
    )
    Console(width=100).print(table(rounds))
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.lengths", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each round lasts")
    parser.add_argument("--clients", type=int, default=64, help="sentences that are asked for at a time")
    return parser


def sentences(path: Path) -> list[dict[str, Array]]:
    """One request for each passage of the file, cut behind its first sentence."""
    with np.load(path) as stored:
        ids = stored["input_ids"]
    requests: list[dict[str, Array]] = []
    for passage in ids:
        ends = np.flatnonzero(np.isin(passage, _SENTENCE_ENDS))
        cut = passage if not len(ends) else np.append(passage[: ends[0] + 1], passage[-1])
        requests.append({"input_ids": cut[None], "attention_mask": np.ones((1, len(cut)), np.int64)})
    return requests


async def compare(
    loaded: LoadedEngine,
    asked: BuildOptions,
    requests: Sequence[dict[str, Array]],
    options: argparse.Namespace,
) -> tuple[dict[str, list[Round]], float]:
    """Rounds by name, the ways taking turns, and the seconds that the warm-up took."""
    if loaded.padding is None:
        raise SystemExit(f"padding was not proven: {loaded.verification.unpadded}")
    # Before the warm-up: the shapes of single lengths are met by clients, as they are without padding.
    alone = BatchRules(batchable=True, sizes=batch_sizes(loaded.engine.inputs, asked.batching.max_batch_rows))
    started_s = time.perf_counter()
    padded = warm_up(loaded.engine, asked.batching, batchable=True, padding=loaded.padding)
    warm_up_s = time.perf_counter() - started_s
    ways = {"each length by itself": alone, "padded to share batches": padded}
    rounds: dict[str, list[Round]] = {name: [] for name in ways}
    batchers = {name: batcher_of(loaded, asked, rules) for name, rules in ways.items()}
    for _ in range(_ROUNDS):
        for name, (batcher, metrics) in batchers.items():
            rounds[name].append(await load(batcher, metrics, requests, options))
    for batcher, _ in batchers.values():
        await batcher.close()
    return rounds, warm_up_s


def batcher_of(
    loaded: LoadedEngine, asked: BuildOptions, rules: BatchRules
) -> tuple[Batcher, VersionMetrics]:
    """A batcher of its own on the shared engine; only one is under load at a time."""
    metrics = Metrics().of("minilm", "1")
    batcher = Batcher(loaded.engine, limits=asked.batching, rules=rules, metrics=metrics)
    batcher.start()
    return batcher, metrics


async def load(
    batcher: Batcher,
    metrics: VersionMetrics,
    requests: Sequence[dict[str, Array]],
    options: argparse.Namespace,
) -> Round:
    """Clients that each ask again once they are answered, for as long as was asked for."""
    order = iter(np.random.default_rng(1).integers(0, len(requests), 1_000_000))
    latencies_s: list[float] = []
    rows, batches = metrics.batch_rows.sum, sum(metrics.batch_rows.counts)
    start_s = time.perf_counter()

    async def client() -> None:
        while (sent_s := time.perf_counter()) - start_s < options.seconds:
            await submit(batcher, requests[next(order)])
            latencies_s.append(time.perf_counter() - sent_s)

    await asyncio.gather(*(client() for _ in range(options.clients)))
    taken_s = time.perf_counter() - start_s
    return Round(
        rows_per_s=len(latencies_s) / taken_s,
        p50_ms=float(np.percentile(latencies_s, 50)) * 1e3,
        p99_ms=float(np.percentile(latencies_s, 99)) * 1e3,
        batch_rows=(metrics.batch_rows.sum - rows) / (sum(metrics.batch_rows.counts) - batches),
    )


def table(rounds: Mapping[str, Sequence[Round]]) -> Table:
    """Every round in a row, and how much more the padded ones answer."""
    shown = Table(title="MiniLM in int8, one sentence a request", box=box.SIMPLE)
    for column in ("rows", "round", "rows/s", "gain", "p50 ms", "p99 ms", "rows a batch"):
        shown.add_column(column, justify="right")
    (_, base), *_ = rounds.items()
    for name, found in rounds.items():
        for number, one in enumerate(found):
            shown.add_row(
                name,
                str(number + 1),
                f"{one.rows_per_s:,.0f}",
                f"{one.rows_per_s / base[number].rows_per_s:.2f}",
                f"{one.p50_ms:.0f}",
                f"{one.p99_ms:.0f}",
                f"{one.batch_rows:.1f}",
            )
    shown.caption = (
        "in the first round of single lengths, clients meet shapes that the engine has not run before"
    )
    return shown


if __name__ == "__main__":
    sys.exit(main())
