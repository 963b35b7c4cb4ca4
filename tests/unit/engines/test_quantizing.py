"""Which candidate becomes the 8-bit model, whatever the tune samples say of each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.model.model import Model
from engines.options import BuildOptions
from engines.pipeline import PHASES
from engines.search.choices import Choices, QuantizationRecord
from engines.search.tuning import Measured
from engines.workspace import CHOICES, UPLOADED_MODEL, Workspace
from tests.unit.engines import onnx_graphs
from tests.unit.engines.test_mixing import measured

Build = Callable[..., Choices]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("build"))
    workspace.path(UPLOADED_MODEL).write_bytes(onnx_graphs.conv_net(channels=32).SerializeToString())
    np.savez(workspace.path("upload/samples-0.npz"), allow_pickle=False, image=onnx_graphs.image_rows(40))
    for phase in PHASES[:3]:
        # Without a variant whose channels are evened out.
        phase.run(workspace, BuildOptions.parse({"effort": "fast"}), lambda _: None)
    return workspace


@pytest.fixture
def build(calibrated: Workspace, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Runs the phase; candidates get these SQNRs in turn, None where the runtime cannot run one."""

    def run(*sqnrs_db: float | None, **options: Any) -> Choices:
        left = iter(sqnrs_db)

        class Tuner:
            def __init__(self, *_: object, **__: object) -> None: ...

            def measure(self, _: Model) -> Measured:
                return measured(next(left))

        monkeypatch.setattr("engines.phases.quantizing.Tuner", Tuner)
        told: list[float] = []
        asked = BuildOptions.parse({"on_miss": "publish", **options})
        PHASES[3].run(calibrated, asked, told.append)
        assert told == sorted(told)
        assert told[-1] == 1.0
        choices = QuantizationRecord.load(calibrated.path(CHOICES)).choices
        assert choices is not None
        assert next(left, None) is None
        return choices

    return run


@pytest.mark.parametrize(
    ("sqnrs_db", "chosen"),
    [
        # Three kinds of thresholds, and the best of them with fitted weights.
        ((30, 30, 30, 30), 0),
        ((30, 30.1, 30.1, 30), 0),
        ((30, 30.1, 30.3, 30), 2),
        ((30, 30, 30, 30.1), 3),
        ((None, None, None, None), 0),
        ((None, 8, None, 3), 1),
        # 20 dB are asked for, and half a decibel more on the tune samples.
        ((20.4, 20.55, 20.3, 20.3), 1),
        ((20.51, 20.6, 20.6, 20.6), 3),
    ],
)
def test_the_simplest_candidate_that_none_clearly_beats_is_chosen(
    build: Build, sqnrs_db: tuple[float | None, ...], chosen: int
) -> None:
    choices = build(*sqnrs_db)
    assert [candidate.fitted for candidate in choices.candidates] == [False, False, False, True]
    assert choices.chosen == chosen


def test_fp8_has_one_kind_of_thresholds(build: Build) -> None:
    choices = build(30, 31, precision="fp8")
    assert [candidate.fitted for candidate in choices.candidates] == [False, True]
    assert choices.chosen == 1
