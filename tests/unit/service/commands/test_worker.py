from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.processes import supervisor
from service.settings import Settings


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The waiting times of the workers that were to be started; each ends with 75."""
    given: list[float | None] = []

    def work(_: Settings, *, say: object, once_s: float | None) -> int:
        given.append(once_s)
        return 75

    monkeypatch.setenv("OCTET_HOME", str(tmp_path))
    monkeypatch.setattr(supervisor, "work", work)
    return given


@pytest.mark.parametrize(
    ("arguments", "once_s"),
    [
        ([], None),
        (["--once"], 60.0),
        (["--once", "--idle-s", "2.5"], 2.5),
        (["--once", "--idle-s", "0"], 0.0),
    ],
)
def test_a_worker_is_started_as_it_was_told_to_and_its_status_is_passed_on(
    orders: list[float | None], arguments: list[str], once_s: float | None
) -> None:
    assert CliRunner().invoke(app, ["worker", *arguments]).exit_code == 75
    assert orders == [once_s]


def test_a_waiting_time_without_a_build_to_wait_for_is_refused(orders: list[float | None]) -> None:
    refused = CliRunner().invoke(app, ["worker", "--idle-s", "60"])
    assert refused.exit_code == 1
    assert refused.stderr.startswith(
        "octet: --idle-s 60 says how long to wait for the one build of --once, and"
    )
    assert orders == []
