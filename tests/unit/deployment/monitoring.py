"""The alerts and the dashboard that are shipped, and the metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
FILES = ROOT / "k8s" / "octet" / "files"
_NAME = re.compile(r"\b(?:octet|process)_[a-z_]+\b")


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
    return found


def expressions() -> list[str]:
    """All of PromQL that the alerts and the dashboard ask."""
    asked = [rule["expr"] for rule in alerts()]
    for panel in dashboard()["panels"]:
        asked += [target["expr"] for target in panel.get("targets", ())]
    asked += [
        variable["query"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"
    ]
    return asked


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics in PromQL."""
    return set(_NAME.findall(expression))
