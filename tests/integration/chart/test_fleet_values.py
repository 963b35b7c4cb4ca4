"""What particular values of the chart make."""

import base64
import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from pydantic import SecretStr

from service.app import create_app
from service.catalog.migration import migrate
from service.catalog.schema import create_engine
from service.processes.supervisor import READY
from service.settings import Settings
from tests.integration.chart.conftest import CHART
from tests.integration.chart.manifests import Render, component_of, found, labels_of, selects
from tests.integration.chart.values import COLLECTOR, GOOD, PLACED, POSTGRESQL
from tests.integration.running import DIGITS, running
from tests.unit.deployment.monitoring import dashboard, metrics_of

ADMIN_KEY = "a" * 43


def rendered(helm: dict[str, Any], name: str) -> Render:
    # A copy: all tests share what Helm has made.
    return Render(manifests=copy.deepcopy(helm["renders"][name]["manifests"]))


def test_the_script_of_helm_test_builds_and_infers_on_a_real_octet(tmp_path: Path) -> None:
    with running(tmp_path / "home", OCTET_ADMIN_KEY=ADMIN_KEY) as octet:
        done = subprocess.run(
            [sys.executable, CHART / "files" / "try_it.py"],
            env={
                "OCTET_ADDRESS": f"http://127.0.0.1:{octet.port}",
                "OCTET_DIGITS": str(DIGITS),
                "OCTET_KEY": ADMIN_KEY,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "was built, served and answers" in done.stdout
        octet.client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        assert octet.client.get("/v1/models").json()["models"] == []


def test_the_query_that_scales_workers_counts_queued_and_running_builds(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    migrate(engine)
    query = (CHART / "files" / "builds.sql").read_text()
    columns = sa.inspect(engine).get_columns("builds")
    with engine.begin() as connection:
        for number, state in enumerate(("queued", "running", "running", "succeeded", "failed", "cancelled")):
            row = {
                column["name"]: state if column["name"] == "state" else _filler(column, number)
                for column in columns
            }
            connection.execute(sa.table("builds", *map(sa.column, row)).insert().values(row))
        assert connection.exec_driver_sql(query).scalar() == 3
    engine.dispose()


def _filler(column: Any, number: int) -> object:
    if column["nullable"]:
        return None
    return f"{number}" if isinstance(column["type"], sa.String | sa.JSON | sa.Text) else number


def test_keda_asks_for_metrics_that_there_are(helm: dict[str, Any], tmp_path: Path) -> None:
    exposed = {
        f"{family.name}{suffix}"
        for family in create_app(Settings(home=tmp_path)).state.octet.metrics.registry.collect()
        for suffix in (("_sum", "_count") if family.type == "histogram" else ("",))
    }
    [servers] = [
        scaled
        for scaled in rendered(helm, "keda").of_kind("ScaledObject")
        if component_of(scaled) == "server"
    ]
    asked = set().union(*(metrics_of(query) for query in found(servers, "query")))
    assert asked == {"octet_queue_seconds_sum", "octet_queue_seconds_count", "octet_queue_rows"}
    assert asked <= exposed


def test_workers_scale_to_zero_and_servers_do_not(helm: dict[str, Any]) -> None:
    scaled = {
        component_of(made): made["spec"]["minReplicaCount"]
        for made in rendered(helm, "keda").of_kind("ScaledObject")
    }
    assert scaled == {"server": 2, "worker": 0}


def test_a_build_gets_a_job_that_no_upgrade_and_no_limit_ends(helm: dict[str, Any]) -> None:
    render = rendered(helm, "jobs")
    [scaled] = render.of_kind("ScaledJob")
    spec, job = scaled["spec"], scaled["spec"]["jobTargetRef"]
    assert component_of(scaled) == "worker"
    assert spec["rollout"] == {"strategy": "gradual"}
    assert (spec.get("minReplicaCount", 0), spec["maxReplicaCount"]) == (0, 4)
    assert job.keys() == {"backoffLimit", "template"}
    [worker] = job["template"]["spec"]["containers"]
    assert worker["args"] == ["worker", "--once", "--idle-s", "60"]
    assert [component_of(made) for made in render.of_kind("Deployment")] == ["server"]
    assert [component_of(made) for made in render.of_kind("ScaledObject")] == ["server"]


def test_a_build_whose_worker_died_gets_another_job(helm: dict[str, Any]) -> None:
    [scaled] = rendered(helm, "jobs").of_kind("ScaledJob")
    [trigger] = scaled["spec"]["triggers"]
    # Both count: jobs that live are taken off, so what is left over is queued, or runs without one.
    assert trigger["metadata"]["query"] == (CHART / "files" / "builds.sql").read_text().strip()
    assert (trigger["metadata"]["targetQueryValue"], scaled["spec"]["scalingStrategy"]) == (
        "1",
        {"strategy": "default"},
    )


def test_the_pod_of_a_job_is_that_of_a_worker(helm: dict[str, Any]) -> None:
    job, worker = (rendered(helm, name).pod("worker") for name in ("jobs", "keda"))
    assert job["metadata"]["labels"] == worker["metadata"]["labels"]
    assert job["spec"].pop("restartPolicy") == "OnFailure"
    del job["spec"]["containers"][0]["args"], worker["spec"]["containers"][0]["args"]
    assert job["spec"] == worker["spec"]


def test_autoscalers_leave_jobs_alone_unless_told_else_and_nodes_can_be_drained(helm: dict[str, Any]) -> None:
    kept = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    for name, told in (
        ("jobs", kept),
        ("jobs that may be moved", kept | {"karpenter.sh/do-not-disrupt": "false"}),
    ):
        render = rendered(helm, name)
        assert told.items() <= render.pod("worker")["metadata"]["annotations"].items()
        assert [component_of(budget) for budget in render.of_kind("PodDisruptionBudget")] == ["server"]
    assert not kept.keys() & rendered(helm, "keda").pod("worker")["metadata"]["annotations"].keys()


@pytest.mark.parametrize(("age_min", "alive"), [(None, True), (0, True), (14, True), (17, False)])
def test_a_worker_lives_until_its_main_loop_has_hung_for_a_quarter_of_an_hour(
    helm: dict[str, Any], tmp_path: Path, age_min: int | None, alive: bool
) -> None:
    [worker] = rendered(helm, "external").pod("worker")["spec"]["containers"]
    command = [word.replace("/data", str(tmp_path)) for word in worker["livenessProbe"]["exec"]["command"]]
    if age_min is not None:
        mark = tmp_path / READY
        mark.touch()
        touched_s = time.time() - 60 * age_min
        os.utime(mark, (touched_s, touched_s))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, done.stderr) == (alive, "")


@pytest.mark.parametrize("name", ["traced", "everything"])
def test_what_servers_and_workers_may_reach_besides_is_what_was_named(
    helm: dict[str, Any], name: str
) -> None:
    render = rendered(helm, name)
    [policy] = [
        made for made in render.of_kind("NetworkPolicy") if made["metadata"]["name"] == "trial-octet-egress"
    ]
    assert policy["spec"]["policyTypes"] == ["Egress"]
    dns, *named = policy["spec"]["egress"]
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert named == COLLECTOR["networkPolicy"]["egress"]
    reaching = {
        component_of(pod) for pod in render.pods if selects(policy["spec"]["podSelector"], labels_of(pod))
    }
    assert reaching == {component_of(pod) for pod in render.pods} & {"server", "worker"}


def test_alerts_arrive_whole_and_name_the_runbooks(helm: dict[str, Any], tmp_path: Path) -> None:
    [rule] = rendered(helm, "everything").of_kind("PrometheusRule")
    shipped = (CHART / "files" / "alerts.yaml").read_text()
    told = GOOD["everything"]["prometheusRule"]["runbooks"]
    assert rule["spec"] == yaml.safe_load(shipped.replace("docs/operations.md", told))
    if shutil.which("promtool") is None:
        pytest.skip("this machine has no promtool, which comes with Prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yaml"], capture_output=True, check=True)


def test_the_dashboard_arrives_whole(helm: dict[str, Any]) -> None:
    [found_map] = [
        made for made in rendered(helm, "everything").of_kind("ConfigMap") if "octet.json" in made["data"]
    ]
    assert json.loads(found_map["data"]["octet.json"]) == dashboard()
    assert found_map["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_prometheus_finds_the_service(helm: dict[str, Any]) -> None:
    render = rendered(helm, "everything")
    [monitor] = render.of_kind("ServiceMonitor")
    matched = [
        service["metadata"]["name"]
        for service in render.of_kind("Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert matched == ["trial-octet"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_secrets_hold_what_was_said(helm: dict[str, Any]) -> None:
    [secret] = rendered(helm, "external").of_kind("Secret")
    said = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert len(said.pop("admin-key")) == 43
    assert said == {
        "database-url": POSTGRESQL,
        "store-access-key-id": "key",
        "store-secret-access-key": "secret",
    }


def test_the_key_of_servers_and_of_helm_test_is_the_one_that_was_said_or_made_up(
    helm: dict[str, Any],
) -> None:
    for name in ("default", "exposed"):
        render = rendered(helm, name)
        [secret] = render.of_kind("Secret")
        key = base64.b64decode(secret["data"]["admin-key"]).decode()
        assert Settings(admin_key=SecretStr(key)).admin_key is not None, "octet takes it"
        assert (key == GOOD[name].get("adminKey")) == (name == "exposed")
        for component, variable in (("server", "OCTET_ADMIN_KEY"), ("test", "OCTET_KEY")):
            [container] = render.pod(component)["spec"]["containers"]
            [given] = [entry for entry in container["env"] if entry["name"] == variable]
            assert given["valueFrom"]["secretKeyRef"] == {
                "name": secret["metadata"]["name"],
                "key": "admin-key",
            }
    assert rendered(helm, "no keys").of_kind("Secret") == []


@pytest.mark.parametrize("name", ["default", "bundled"])
def test_what_was_made_up_at_the_first_installation_stays(helm: dict[str, Any], name: str) -> None:
    assert "error" not in helm["again"][name], helm["again"][name]
    first, again = (Render(manifests=helm[renders][name]["manifests"]) for renders in ("renders", "again"))
    [made], [kept] = first.of_kind("Secret"), again.of_kind("Secret")
    assert made["data"].keys() >= {"admin-key"}
    assert kept["data"] == made["data"]


def test_the_bundled_database_is_the_one_that_is_asked(helm: dict[str, Any]) -> None:
    render = rendered(helm, "bundled")
    [secret] = render.of_kind("Secret")
    said = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert said["database-url"] == (
        f"postgresql://octet:{said['postgresql-password']}@trial-octet-postgresql:5432/octet"
    )
    assert len(said["postgresql-password"]) == 32
    assert "trial-octet-postgresql" in render.named("Service")


def test_placement_goes_to_both_roles(helm: dict[str, Any]) -> None:
    render = rendered(helm, "everything")
    for component in ("server", "worker"):
        pod = render.pod(component)
        assert pod["spec"]["nodeSelector"] == PLACED["nodeSelector"]
        assert pod["spec"]["affinity"] == PLACED["affinity"]
        assert pod["spec"]["priorityClassName"] == "high"
        assert PLACED["tolerations"][0] in pod["spec"]["tolerations"]
        assert pod["metadata"]["annotations"]["team"] == "models"


def test_settings_reach_the_pods_and_changes_roll_them(helm: dict[str, Any]) -> None:
    plain, told = rendered(helm, "bundled"), rendered(helm, "everything")
    [settings] = [made for made in told.of_kind("ConfigMap") if "OCTET_LANES" in made["data"]]
    assert settings["data"] == GOOD["everything"]["settings"]
    checksums = [
        render.pod("server")["metadata"]["annotations"]["checksum/settings"] for render in (plain, told)
    ]
    assert checksums[0] != checksums[1]
