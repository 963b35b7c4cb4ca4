from pathlib import Path

import numpy as np
import pytest

from engines.accuracy import BEST_DB
from engines.model import Model, from_proto
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.runtimes.reference import ReferenceRuntime
from engines.samples import SampleView, import_samples
from engines.tuning import Candidate, Tuner
from tests.unit.engines import onnx_graphs


@pytest.fixture
def model() -> Model:
    return from_proto(onnx_graphs.conv_net())


@pytest.fixture
def samples(model: Model, tmp_path: Path) -> SampleView:
    np.savez(tmp_path / "rows.npz", image=onnx_graphs.image_rows(40))
    return import_samples([tmp_path / "rows.npz"], model.inputs, tmp_path / "samples").split().tune


@pytest.fixture
def tuner(model: Model, samples: SampleView) -> Tuner:
    return Tuner(model, samples, runtime=ReferenceRuntime(), threads=1)


def at(model: Model, threshold: float) -> Model:
    placement = place(model)
    return quantize_model(model, placement, dict.fromkeys(tensors(placement), threshold), weight_bits=8)


def test_fp32_itself_has_no_noise(tuner: Tuner, model: Model) -> None:
    assert tuner.sqnr_db(model) == BEST_DB


@pytest.mark.parametrize("order", [1, -1])
def test_candidate_closest_to_fp32_wins_wherever_it_stands(tuner: Tuner, model: Model, order: int) -> None:
    candidates = [
        Candidate(name="clipped", make=lambda: at(model, 0.2)),
        Candidate(name="fitting", make=lambda: at(model, 4.0)),
    ]
    done: list[float] = []
    choice = tuner.choose(candidates[::order], progress=done.append)
    assert choice.name == "fitting"
    assert choice.sqnr_db["fitting"] > choice.sqnr_db["clipped"] + 10
    assert done == [0.5, 1.0]


def test_first_of_equal_candidates_wins(tuner: Tuner, model: Model) -> None:
    same = [Candidate(name=name, make=lambda: at(model, 4.0)) for name in ("plain", "elaborate")]
    assert tuner.choose(same, progress=lambda done: None).name == "plain"


def test_candidate_that_cannot_run_loses_but_does_not_fail_the_build(tuner: Tuner, model: Model) -> None:
    broken = from_proto(model.proto)
    broken.proto.graph.node[0].op_type = "Frobnicate"
    assert tuner.sqnr_db(broken) == -BEST_DB


def test_nothing_to_choose_from_is_an_error(tuner: Tuner) -> None:
    with pytest.raises(ValueError, match="nothing to choose from"):
        tuner.choose([], progress=lambda done: None)
