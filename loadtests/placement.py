"""Where octet and NVIDIA's Model Optimizer put Q/DQ pairs in the same graphs: `python -m loadtests.placement`.

Prints a table of the inputs of layers that both quantize and of those that only one does, each with its reason
(`loadtests.placement_reasons`), and ends with status 1 where a difference has none. Takes about a minute; the Model
Optimizer is installed first, into an environment of its own of 6.5 GB. The sentence encoder is left out where
`python -m scripts.export_minilm` has not exported it.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich import box
from rich.console import Console
from rich.table import Table

from engines.model.model import Model, load_model, save_model
from engines.phases.preparing import prepare
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from loadtests.cases import MODELS
from loadtests.peers.environment import ROOT, PeerEnvironment
from loadtests.placement_reasons import QuantizedInput, Wiring, quantized_inputs, reason
from loadtests.resnet50 import IMAGE_SHAPE, write_resnet50

_ENVIRONMENT = ROOT / ".octet-bench" / "modelopt"
_REQUIREMENTS = Path(__file__).parent / "peers" / "modelopt.txt"
_ROWS = 8
_UNEXPLAINED = "UNEXPLAINED"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A graph that both quantize."""

    name: str
    model: Path
    # The .npz that the Model Optimizer calibrates on.
    samples: Path


@dataclass(frozen=True, kw_only=True)
class Line:
    """Inputs of one kind of layer of one graph that are treated alike."""

    subject: str
    # Who quantizes them: both, octet, or the Model Optimizer.
    who: str
    operator: str
    count: int
    reason: str = ""


def main() -> None:
    """Compares all graphs and prints the table."""
    parser = argparse.ArgumentParser(
        description="Compare octet's Q/DQ pairs with NVIDIA's Model Optimizer's."
    )
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    console = Console()
    peers = PeerEnvironment(_ENVIRONMENT, requirements=_REQUIREMENTS)
    lines: list[Line] = []
    version = ""
    with tempfile.TemporaryDirectory() as folder:
        for subject in _subjects(Path(folder)):
            if not subject.model.exists():
                console.print(f"{subject.name} is left out: {MODELS[subject.name].remedy}")
                continue
            console.print(f"quantizing {subject.name}")
            version, found = compare(subject, peers, Path(folder))
            lines += found
    console.print(_table(lines, version))
    if arguments.markdown:
        arguments.markdown.write_text(_markdown(lines), encoding="utf-8")
    sys.exit(any(line.reason == _UNEXPLAINED for line in lines))


def compare(subject: Subject, peers: PeerEnvironment, folder: Path) -> tuple[str, list[Line]]:
    """The Model Optimizer's version, and what the two have and have not in common."""
    model = prepare(load_model(subject.model))
    source, target = folder / f"{subject.name}.onnx", folder / f"{subject.name}.theirs.onnx"
    save_model(model, source)
    job = {"model": str(source), "samples": str(subject.samples), "target": str(target)}
    version = str(peers.run("loadtests.peers.with_modelopt", job)["version"])
    ours, theirs = quantized_inputs(_octets(model)), quantized_inputs(onnx.load(target))
    return version, differences(subject.name, Wiring(model.proto.graph), ours, theirs)


def differences(
    subject: str, wiring: Wiring, ours: frozenset[QuantizedInput], theirs: frozenset[QuantizedInput]
) -> list[Line]:
    """What both quantize, then what only one of them does, by operator and reason."""
    counts: Counter[tuple[str, str, str]] = Counter(("both", place.operator, "") for place in ours & theirs)
    for each in ours ^ theirs:
        by_octet = each in ours
        why = reason(each, wiring, by_octet=by_octet) or _UNEXPLAINED
        counts["octet" if by_octet else "Model Optimizer", each.operator, why] += 1
    return [
        Line(subject=subject, who=who, operator=operator, count=count, reason=why)
        for (who, operator, why), count in sorted(counts.items())
    ]


def _octets(model: Model) -> onnx.ModelProto:
    """Everything that octet may quantize in INT8; thresholds do not matter here."""
    placement = place(model, attention=True)
    thresholds = dict.fromkeys(tensors(placement), 1.0)
    return quantize_model(model, placement, thresholds, weight_bits=8).proto


def _subjects(folder: Path) -> Iterator[Subject]:
    write_resnet50(folder / "resnet50.onnx")
    images = np.random.default_rng(0).normal(size=(2, *IMAGE_SHAPE)).astype(np.float32)
    np.savez(folder / "images.npz", image=images)
    yield Subject(name="ResNet-50", model=folder / "resnet50.onnx", samples=folder / "images.npz")
    for case in MODELS.values():
        samples = folder / f"{case.name}.npz"
        if case.model.exists():
            with np.load(case.calibration) as archive:
                np.savez(samples, **{name: archive[name][:_ROWS] for name in archive.files})
        yield Subject(name=case.name, model=case.model, samples=samples)


def _table(lines: list[Line], version: str) -> Table:
    table = Table("graph", "quantized by", "layer", "inputs", "reason", box=box.SIMPLE)
    table.title = f"Q/DQ pairs of octet and of Model Optimizer {version}"
    for line in lines:
        table.add_row(line.subject, line.who, line.operator, str(line.count), line.reason)
    return table


def _markdown(lines: list[Line]) -> str:
    head = "| graph | quantized by | layer | inputs | reason |\n|---|---|---|--:|---|\n"
    rows = (
        f"| {line.subject} | {line.who} | {line.operator} | {line.count} | {line.reason} |\n"
        for line in lines
    )
    return head + "".join(rows)


if __name__ == "__main__":
    main()
