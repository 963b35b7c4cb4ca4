"""Which ways to write the 8-bit model are tried, and which is preferred."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engines.calibration.histogram import Histogram
from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.model.model import Model, from_proto
from engines.options import BuildOptions, CalibrationMethod
from engines.phases.calibrating import Observed
from engines.quantization.placement import place, tensors
from engines.runtimes.reference import ReferenceRuntime
from engines.samples.importing import SampleView, import_samples
from engines.search.candidates import Tried, first_plans, try_candidates
from engines.search.choices import Variant
from engines.search.tuning import Measured
from tests.unit.engines import onnx_graphs

AUTO, ENTROPY, MSE = CalibrationMethod.AUTO, CalibrationMethod.ENTROPY, CalibrationMethod.MSE
PREPARED, EVENED = Variant.PREPARED, Variant.EVENED


class ScriptedTuner:
    """Gives these SQNRs in turn, whatever the model; None for one that cannot run."""

    def __init__(self, *sqnr_db: float | None) -> None:
        self.left = list(sqnr_db)

    def measure(self, _model: Model) -> Measured:
        return measured(self.left.pop(0))


def measured(sqnr_db: float | None) -> Measured:
    output = OutputAccuracy(name="scores", rows=64, sqnr_db=sqnr_db, row_sqnr_p5_db=sqnr_db)
    accuracy = None if sqnr_db is None else Accuracy(outputs=(output,))
    return Measured(accuracy=accuracy, batch_ms=1.0, size_bytes=100, wall_s=0.1)


@pytest.fixture
def model() -> Model:
    return from_proto(onnx_graphs.conv_net())


@pytest.fixture
def rows(model: Model, tmp_path: Path) -> SampleView:
    np.savez(tmp_path / "rows.npz", image=onnx_graphs.image_rows(16))
    return import_samples([tmp_path / "rows.npz"], model.inputs, tmp_path / "samples").split().calibrate


def observed(model: Model, variant: Variant, *, added_nodes: int = 0) -> Observed:
    values = np.random.default_rng(1).normal(size=4096).astype(np.float32)
    histograms = {name: Histogram.of(values) for name in tensors(place(model))}
    return Observed(variant=variant, model=model, histograms=histograms, added_nodes=added_nodes)


def tried(
    model: Model, rows: SampleView | None, tuner: ScriptedTuner, *variants: Variant, **options: str
) -> list[Tried]:
    asked = BuildOptions.parse(dict(options))
    plans = first_plans([observed(model, variant) for variant in variants], asked, ReferenceRuntime())
    done: list[float] = []
    found = try_candidates(plans, tuner, rows, asked, done.append)  # type: ignore[arg-type] # measures all the same
    assert tuner.left == []
    assert done == sorted(done)
    assert all(0 <= share <= 1 for share in done)
    return found


def kinds(found: list[Tried]) -> list[tuple[Variant, CalibrationMethod, bool]]:
    return [(each.plan.observed.variant, each.plan.method, bool(each.plan.weights)) for each in found]


def test_every_kind_of_thresholds_and_then_fitted_weights_are_tried(model: Model, rows: SampleView) -> None:
    found = tried(model, rows, ScriptedTuner(30, 28, 33, 35), PREPARED)
    assert kinds(found) == [
        (PREPARED, AUTO, False),
        (PREPARED, ENTROPY, False),
        (PREPARED, MSE, False),
        (PREPARED, MSE, True),
    ]


def test_weights_are_not_fitted_to_the_rows_that_judge_them(model: Model) -> None:
    assert kinds(tried(model, None, ScriptedTuner(30, 28, 33), PREPARED))[-1] == (PREPARED, MSE, False)


def test_thresholds_that_were_asked_for_are_the_only_ones(model: Model, rows: SampleView) -> None:
    found = tried(model, rows, ScriptedTuner(30, 31), PREPARED, calibration="percentile")
    assert {each.plan.method for each in found} == {CalibrationMethod.PERCENTILE}


def test_fast_tries_one(model: Model, rows: SampleView) -> None:
    assert kinds(tried(model, rows, ScriptedTuner(30), PREPARED, effort="fast")) == [(PREPARED, AUTO, False)]


def test_a_variant_that_is_far_behind_is_tried_no_further(model: Model, rows: SampleView) -> None:
    found = tried(model, rows, ScriptedTuner(16, 26, 25, 24, 27), PREPARED, EVENED)
    assert kinds(found)[0] == (PREPARED, AUTO, False)
    assert {variant for variant, _, _ in kinds(found)[1:]} == {EVENED}


def test_a_variant_that_is_not_far_behind_is_fitted_too(model: Model, rows: SampleView) -> None:
    found = tried(model, rows, ScriptedTuner(25, 26, 25, 24, 25, 24, 27, 30), PREPARED, EVENED)
    assert kinds(found)[-2:] == [(EVENED, AUTO, True), (PREPARED, AUTO, True)]


def test_thorough_fits_every_plan(model: Model, rows: SampleView) -> None:
    found = tried(
        model, rows, ScriptedTuner(16, 26, *[20.0] * 4, *[21.0] * 6), PREPARED, EVENED, effort="thorough"
    )
    assert sum(fitted for _, _, fitted in kinds(found)) == 6


def test_what_cannot_run_loses_and_nothing_fails(model: Model, rows: SampleView) -> None:
    found = tried(model, rows, ScriptedTuner(None, None, None, None), PREPARED)
    best = max(found, key=lambda each: each.rank(BuildOptions()))
    assert best is found[0]


@pytest.mark.parametrize(
    ("variant", "method", "added_nodes", "least_gain_db"),
    [
        (PREPARED, ENTROPY, 0, 0.2),
        (EVENED, AUTO, 0, 0.2),
        (EVENED, AUTO, 3, 1.0),
        (EVENED, MSE, 3, 1.2),
    ],
)
def test_what_is_less_simple_has_to_win_something(
    model: Model, variant: Variant, method: CalibrationMethod, added_nodes: int, least_gain_db: float
) -> None:
    options = BuildOptions()

    def rank(which: Variant, how: CalibrationMethod, sqnr_db: float) -> tuple[bool, float]:
        seen = observed(model, which, added_nodes=added_nodes if which is EVENED else 0)
        asked = options.model_copy(update={"calibration": how})
        [plan] = first_plans([seen], asked, ReferenceRuntime())
        return Tried(plan=plan, measured=measured(sqnr_db)).rank(options)

    simple = rank(PREPARED, AUTO, 30.0)
    assert rank(variant, method, 30.0 + least_gain_db - 0.05) < simple
    assert rank(variant, method, 30.0 + least_gain_db + 0.05) > simple


def test_attention_in_8_bits_may_cost_half_a_decibel(model: Model) -> None:
    [plan] = first_plans([observed(model, PREPARED)], BuildOptions(), ReferenceRuntime())

    def rank(sqnr_db: float, *, attention: bool) -> tuple[bool, float]:
        each = dataclasses.replace(plan, attention=attention)
        return Tried(plan=each, measured=measured(sqnr_db)).rank(BuildOptions())

    assert rank(29.55, attention=True) > rank(30.0, attention=False)
    assert rank(29.45, attention=True) < rank(30.0, attention=False)


def test_what_keeps_the_contract_comes_first(model: Model) -> None:
    options = BuildOptions()
    [plan] = first_plans([observed(model, EVENED, added_nodes=1)], options, ReferenceRuntime())
    [simple] = first_plans([observed(model, PREPARED)], options, ReferenceRuntime())
    keeping = Tried(plan=plan, measured=measured(20.8))
    missing = Tried(plan=simple, measured=measured(20.3))
    assert keeping.worth_db < missing.worth_db
    assert keeping.rank(options) > missing.rank(options)
