import shutil
import subprocess
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import Settings
from tests.unit.deployment.monitoring import FILES, alerts, dashboard, expressions, metrics_of

RULE_TESTS = Path(__file__).with_name("alerts.yaml")


def exposed(tmp_path: Path) -> set[str]:
    """Names under which Prometheus finds the server's metrics."""
    names = set()
    for family in create_app(Settings(home=tmp_path)).state.octet.metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {f"{family.name}{suffix}" for suffix in suffixes.get(family.type, ("",))}
    return names


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("this machine has no promtool, which comes with Prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    asked = set().union(*(metrics_of(expression) for expression in expressions()))
    assert len(asked) > 20
    assert asked <= exposed(tmp_path)


def test_no_expression_asks_for_no_metric() -> None:
    assert all(metrics_of(expression) for expression in expressions())


def test_panels_do_not_overlap() -> None:
    places = [
        (place["y"] + row, place["x"] + column)
        for panel in dashboard()["panels"]
        for place in [panel["gridPos"]]
        for row in range(place["h"])
        for column in range(place["w"])
    ]
    assert len(places) == len(set(places))
    assert max(column for _, column in places) == 23


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(FILES / "alerts.yaml"))


def test_every_alert_fires_for_what_it_is_about_and_for_nothing_else() -> None:
    promtool("test", "rules", str(RULE_TESTS))


def test_every_alert_has_such_a_test() -> None:
    tested = RULE_TESTS.read_text()
    assert all(f"alertname: {alert['alert']}\n" in tested for alert in alerts())
