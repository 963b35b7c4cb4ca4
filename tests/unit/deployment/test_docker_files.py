"""What docker/ says, held against the code, without a Docker engine."""

import re
from typing import Any

import pytest
import yaml

from engines.options import Batching
from service.server import ENDING_S
from service.settings import Settings
from tests.unit.deployment.monitoring import ROOT, alerts, dashboard

DOCKER = ROOT / "docker"
FILES = ("Dockerfile", "Dockerfile.gpu")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_last_stage_starts_from_an_argument_and_runs_octet_as_nobody(name: str) -> None:
    text = (DOCKER / name).read_text()
    last = text[text.rindex("FROM ${BASE}\n") :]
    assert re.search(r"^ARG BASE=\S+:\S+$", text, re.MULTILINE)
    assert "USER 10001:10001" in last
    assert 'ENTRYPOINT ["octet"]' in last
    assert "HEALTHCHECK" in last
    assert "/v2/health/live" in last
    assert "pip install" not in last


def test_both_images_end_alike() -> None:
    cpu, gpu = ((DOCKER / name).read_text() for name in FILES)
    shared = "# Listening on all addresses"
    assert cpu[cpu.index(shared) :] == gpu[gpu.index(shared) :]


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_copied_is_in_the_context(name: str) -> None:
    allowed = {
        line[1:]
        for line in (DOCKER / f"{name}.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / name).read_text(), re.MULTILINE)
    assert {source for sources in copied for source in sources.split()} == allowed
    assert all((ROOT / source).exists() for source in allowed)


def test_composed_octets_are_told_what_there_is_to_be_told() -> None:
    known = {f"OCTET_{field.upper()}" for field in Settings.model_fields}
    for name in ("migrate", "server", "worker"):
        service = compose()["services"][name]
        told = set(service["environment"])
        assert {variable for variable in told if variable.startswith("OCTET_")} <= known
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_a_composed_server_has_the_time_to_answer_what_it_admitted() -> None:
    grace = compose()["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= Batching().timeout_ms / 1e3 + ENDING_S


def test_nothing_composed_listens_beyond_this_machine() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_mounted_file_is_there() -> None:
    mounts = [mount for service in compose()["services"].values() for mount in service.get("volumes", ())]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) == 5
    assert all((DOCKER / file).is_file() for file in files)


def test_grafana_finds_the_dashboard_where_it_is_mounted() -> None:
    provider = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"][0]
    grafana = compose()["services"]["grafana"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == (
        f"{provider['options']['path']}/octet.json"
    )
    assert any(f":{provider['options']['path']}/octet.json:" in mount for mount in grafana["volumes"])
    assert dashboard()["title"] == "octet"


def test_prometheus_reads_the_alerts_where_they_are_mounted() -> None:
    configuration = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    mounts = compose()["services"]["prometheus"]["volumes"]
    assert all(any(f":{file}:" in mount for mount in mounts) for file in configuration["rule_files"])
    assert alerts()
