from typing import Any

import pytest

from tests.integration.chart.values import BAD, GOOD

_WARNING = 2


@pytest.mark.parametrize("name", GOOD)
def test_helm_finds_nothing_to_blame(helm: dict[str, Any], name: str) -> None:
    lint = helm["lints"][name]
    assert lint["Errors"] is None
    assert [message for message in lint["Messages"] if message["Severity"] >= _WARNING] == []


@pytest.mark.parametrize("name", GOOD)
def test_every_set_renders_to_what_kubernetes_takes(helm: dict[str, Any], name: str) -> None:
    render = helm["renders"][name]
    assert "error" not in render, render["error"]
    assert render["invalid"] == []


@pytest.mark.parametrize("name", BAD)
def test_what_contradicts_itself_is_refused_with_the_remedy(helm: dict[str, Any], name: str) -> None:
    assert BAD[name][1] in helm["renders"][name].get("error", "it rendered")


@pytest.mark.parametrize("name", GOOD)
def test_notes_name_the_next_commands_and_who_gets_in(helm: dict[str, Any], name: str) -> None:
    notes = helm["renders"][name]["notes"]
    commands = [line for line in notes.splitlines() if line.startswith(("  kubectl ", "  helm "))]
    asks = not GOOD[name].get("noAuth")
    assert len(commands) == (5 if asks else 3)
    assert ("octet keys create" in notes) == asks
    assert ("WARNING: noAuth is true" in notes) != asks
    assert ("networkPolicy.enabled is false" in notes) == (name == "exposed")
    assert ("exposed beyond the cluster" in notes) == (name in ("exposed", "ingress", "everything"))
