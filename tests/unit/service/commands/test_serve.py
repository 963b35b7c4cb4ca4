import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.processes import supervisor
from service.settings import Settings


@pytest.mark.parametrize(("arguments", "said"), [([], "0"), (["--no-auth"], "True")])
def test_nobody_is_asked_for_a_key_where_that_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("OCTET_HOME", str(tmp_path))
    monkeypatch.setenv("OCTET_NO_AUTH", "0")
    told: list[str] = []

    def serve(_: Settings, *, say: object) -> None:
        # The server is a process of its own, which reads this.
        told.append(os.environ["OCTET_NO_AUTH"])

    monkeypatch.setattr(supervisor, "serve", serve)
    assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 0
    assert told == [said]
    assert Settings.load().no_auth == bool(arguments)
