"""Compares octet's 8-bit models with other quantizers', side by side, on the same samples and runtime.

`python -m loadtests.accuracy` prints one table; `--markdown FILE` writes it too, `--ours-only` takes the
peers' rows from the last full run. The sentence encoder has to be exported first:
`python -m scripts.export_minilm`.

Every row runs on OpenVINO (layers left in floating point in f32) and is compared with the FP32 model there.
Throughput is the median over rounds in which all models take turns, as a multiple of FP32's in the same
round.
"""

import argparse
import datetime as dt
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineError
from engines.options import BuildOptions
from engines.runtimes.openvino import as_compiled
from engines.workspace import QUANTIZED
from loadtests.cases import MODELS, Case, score_samples
from loadtests.fidelity import Fidelity, fidelity
from loadtests.peers.environment import REQUIREMENTS, PeerEnvironment, PeerError
from loadtests.peers.settings import Setting

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".octet-bench" / "accuracy"
FP32 = "FP32"
OCTET = "octet, default options"
BATCH_ROWS = 32
ROUNDS = 9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    case: str
    tool: str
    # Why there are no figures; None where there are.
    missing: str | None = None
    fidelity: Fidelity | None = None
    rows_per_s: float = 0.0
    # Throughput as a multiple of FP32's.
    speedup: float = 0.0
    # Convolutions, fully connected layers and matrix products; and how many of them run in 8 bits.
    layers: int = 0
    layers_8bit: int = 0
    # How long the tool took.
    quantize_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A quantized file, or why there is none."""

    tool: str
    path: Path | None = None
    missing: str | None = None
    quantize_s: float = 0.0


def peer_candidate(peers: PeerEnvironment, case: Case, setting: Setting) -> Candidate:
    """What `setting` makes of the model; from the cache where model, samples and versions are the same."""
    if reason := peers.missing.get(setting.distribution):
        return Candidate(tool=setting, missing=f"not installed: {reason}")
    state = hashlib.sha256()
    for content in (case.model.read_bytes(), case.calibration.read_bytes(), REQUIREMENTS.read_bytes()):
        state.update(hashlib.sha256(content).digest())
    folder = CACHE / case.name / f"{setting.name.lower()}-{state.hexdigest()[:12]}"
    target, note = folder / f"model{setting.ending}", folder / "note.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        job = {
            "setting": setting,
            "model": str(case.model),
            "samples": str(case.calibration),
            "target": str(target),
        }
        try:
            note.write_text(json.dumps(peers.run(f"loadtests.peers.with_{setting.distribution}", job)))
        except PeerError as error:
            return Candidate(tool=setting, missing=f"failed: {error}")
    return Candidate(tool=setting, path=target, quantize_s=json.loads(note.read_text())["wall_s"])


def our_candidate(case: Case, folder: Path) -> Candidate:
    """What octet makes of the model under its default options."""
    start = time.perf_counter()
    try:
        engines.quantize(case.model, [case.calibration], folder, BuildOptions())
    except EngineError as error:
        return Candidate(tool=OCTET, missing=f"refused: {error}")
    spent_s = time.perf_counter() - start
    if not (folder / QUANTIZED).exists():
        return Candidate(tool=OCTET, missing="refused: FP32 serves", quantize_s=spent_s)
    # The peers' environment has no octet: it gets the graph that octet's engine hands to OpenVINO.
    compiled = folder / "compiled.onnx"
    compiled.write_bytes(as_compiled(folder / QUANTIZED))
    return Candidate(tool=OCTET, path=compiled, quantize_s=spent_s)


def measure(peers: PeerEnvironment, case: Case, candidates: Iterable[Candidate]) -> list[Row]:
    """Scores and times the candidates and FP32 in one process."""
    candidates = list(candidates)
    models = {FP32: str(case.model)} | {c.tool: str(c.path) for c in candidates if c.path}
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "models": models,
            "samples": str(score_samples(case, Path(scratch))),
            "outputs": scratch,
            "batch_rows": BATCH_ROWS,
            "rounds": ROUNDS,
        }
        answers = peers.run("loadtests.peers.score", job)
        return [
            _row(case, candidate, answers.get(candidate.tool, {}), Path(answers[FP32]["outputs"]))
            for candidate in (Candidate(tool=FP32), *candidates)
        ]


def _row(case: Case, candidate: Candidate, answer: Mapping[str, Any], reference: Path) -> Row:
    if missing := candidate.missing or answer.get("error"):
        return Row(case=case.name, tool=candidate.tool, missing=missing)
    found = fidelity(reference, Path(answer["outputs"]), case.agreement)
    if found is None:
        return Row(case=case.name, tool=candidate.tool, missing="its outputs are not finite")
    return Row(
        case=case.name,
        tool=candidate.tool,
        fidelity=found,
        quantize_s=candidate.quantize_s,
        **{name: answer[name] for name in ("rows_per_s", "speedup", "layers", "layers_8bit")},
    )


def rows_of(peers: PeerEnvironment, case: Case, *, ours_only: bool, peers_only: bool) -> list[Row]:
    """All rows of one model. A full run remembers the peers' for runs of ours alone."""
    if not case.model.exists():
        return [Row(case=case.name, tool=FP32, missing=f"no model: {case.remedy}")]
    memory = CACHE / case.name / "peers.json"
    with tempfile.TemporaryDirectory() as folder:
        ours = [] if peers_only else [our_candidate(case, Path(folder))]
        settings = [] if ours_only else case.settings
        rows = measure(peers, case, [*(peer_candidate(peers, case, s) for s in settings), *ours])
    if ours_only:
        return [rows[0], *(_remembered(memory) if memory.exists() else []), *rows[1:]]
    kept = [row for row in rows if row.tool not in {FP32, OCTET}]
    memory.write_text(json.dumps([asdict(row) for row in kept]))
    return rows


def _remembered(memory: Path) -> list[Row]:
    return [
        Row(**(values | {"fidelity": Fidelity(**values["fidelity"]) if values["fidelity"] else None}))
        for values in json.loads(memory.read_text())
    ]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, with the date, the machine and the versions above it."""
    lines = [
        "| model | tool | cosine | agreement | SQNR dB | rows/s | against FP32 | 8-bit layers | made in s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.fidelity is None:
            lines.append(f"| {row.case} | {row.tool} | {row.missing} | | | | | | |")
            continue
        found = row.fidelity
        cells = (
            f"{found.cosine:.4f}",
            f"{found.agreement:.1%}",
            "" if row.tool == FP32 else f"{found.sqnr_db:.1f}",
            f"{row.rows_per_s:,.0f}",
            f"{row.speedup:.2f}",
            f"{row.layers_8bit}/{row.layers}",
            f"{row.quantize_s:.0f}" if row.quantize_s else "",
        )
        lines.append(f"| {row.case} | {row.tool} | {' | '.join(cells)} |")
    return "\n".join([_setting(), "", *lines])


def _setting() -> str:
    processors = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.partition(":")[2].strip() for line in processors.splitlines() if line.startswith("model name")
    ]
    machine = f"{len(names)} x {names[0]}" if names else platform.processor()
    vnni = "VNNI" if "_vnni" in processors else "no VNNI"
    versions = [line.replace("==", " ") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    today = dt.datetime.now(tz=dt.UTC).date()
    return f"{today}, {machine}, {vnni}; {', '.join(versions)}; batches of {BATCH_ROWS}."


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compares octet with other quantizers.")
    parser.add_argument("models", nargs="*", help=f"which of {', '.join(MODELS)}; all by default")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ours-only", action="store_true", help="take the peers' rows from the last full run")
    which.add_argument("--peers-only", action="store_true", help="leave out octet's row")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.models if name not in MODELS]:
        parser.error(f"unknown model {unknown[0]!r}; choose from {', '.join(MODELS)}")
    peers = PeerEnvironment(ROOT / ".octet-bench" / "peers")
    rows: list[Row] = []
    for name in chosen.models or MODELS:
        rows += rows_of(peers, MODELS[name], ours_only=chosen.ours_only, peers_only=chosen.peers_only)
    text = table(rows)
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
