"""What holds of every render of the chart, whatever the values."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from service.cli import app
from service.settings import Settings
from tests.integration.chart.manifests import (
    Render,
    component_of,
    containers,
    found,
    labels_of,
    selects,
    texts,
)
from tests.integration.chart.values import GOOD, LONGEST_S

PLAN_SECRET = "OCTET_PLAN_SECRET"
GPU = "nvidia.com/gpu"


@pytest.fixture(params=GOOD)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def render(helm: dict[str, Any], name: str) -> Render:
    return Render(manifests=helm["renders"][name]["manifests"])


def test_every_container_has_requests_and_limits(render: Render) -> None:
    for pod in render.pods:
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_every_container_that_stays_is_probed(render: Render) -> None:
    for pod in render.staying:
        for container in pod["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_nobody_is_root_or_could_become_it(render: Render) -> None:
    for pod in render.pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["runAsUser"] > 0
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_pods_get_neither_a_token_nor_variables_of_services(render: Render) -> None:
    for pod in render.pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False


def test_every_selector_takes_pods_of_its_own_component(render: Render) -> None:
    for workload in render.of_kind("Deployment", "StatefulSet"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert selects(workload["spec"]["selector"], labels)
    for service in render.of_kind("Service"):
        taken = [
            pod
            for pod in render.pods
            if selects({"matchLabels": service["spec"]["selector"]}, labels_of(pod))
        ]
        assert [component_of(pod) for pod in taken] == [component_of(service)]
        ports = {port["name"] for pod in taken for port in pod["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in render.of_kind("PodDisruptionBudget"):
        taken = [pod for pod in render.pods if selects(budget["spec"]["selector"], labels_of(pod))]
        assert [component_of(pod) for pod in taken] == [component_of(budget)]
    for pod in render.pods:
        for spread in pod["spec"].get("topologySpreadConstraints", ()):
            assert selects(spread["labelSelector"], labels_of(pod))


def test_components_do_not_take_each_others_pods(render: Render) -> None:
    for workload in render.of_kind("Deployment", "StatefulSet"):
        assert len([pod for pod in render.pods if selects(workload["spec"]["selector"], labels_of(pod))]) == 1


def test_every_secret_that_must_be_there_is(render: Render, name: str) -> None:
    made = {
        (secret["metadata"]["name"], key) for secret in render.of_kind("Secret") for key in secret["data"]
    }
    values = GOOD[name]
    if values.get("existingSecret"):
        made |= {(values["existingSecret"], key) for key in ("admin-key", "database-url")}
    wanted = [
        reference for reference in found(render.manifests, "secretKeyRef") if not reference.get("optional")
    ]
    wanted += [target for targets in found(render.manifests, "secretTargetRef") for target in targets]
    assert {(reference["name"], reference["key"]) for reference in wanted} <= made


def test_whatever_pods_refer_to_is_there(render: Render, name: str) -> None:
    given = {
        GOOD[name].get(group, {}).get(key) for group in ("store", "engineCache") for key in ("claim",)
    } | {GOOD[name].get("persistence", {}).get("existingClaim")}
    accounts = render.named("ServiceAccount") | {GOOD[name].get("serviceAccount", {}).get("name")}
    for pod in render.pods:
        spec = pod["spec"]
        assert spec.get("serviceAccountName") in accounts | {None}
        volumes = {volume["name"] for volume in spec["volumes"]} | (
            {"data"} if component_of(pod) == "postgresql" else set()
        )
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    claims = {claim["claimName"] for claim in found(render.pods, "persistentVolumeClaim")}
    assert claims <= render.named("PersistentVolumeClaim") | given
    maps = [*found(render.pods, "configMapRef"), *found(render.pods, "configMap")]
    assert {reference["name"] for reference in maps} <= render.named("ConfigMap")


def test_whatever_scales_scales_something_that_says_no_number_itself(render: Render) -> None:
    for scaler in render.of_kind("HorizontalPodAutoscaler", "ScaledObject"):
        [target] = [
            workload
            for workload in render.of_kind("Deployment")
            if workload["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
        ]
        assert "replicas" not in target["spec"]
        assert component_of(target) == component_of(scaler)


def test_variables_are_settings_of_octet(render: Render) -> None:
    known = {f"OCTET_{field.upper()}" for field in Settings.model_fields} | {PLAN_SECRET}
    for component in {component_of(pod) for pod in render.pods} & {"server", "worker"}:
        for container in containers(render.pod(component)):
            variables = {variable["name"] for variable in container["env"]}
            assert {variable for variable in variables if variable.startswith("OCTET_")} <= known
    [settings] = [
        made for made in render.of_kind("ConfigMap") if made["metadata"]["name"] in found_maps(render)
    ]
    assert set(settings["data"] or ()) <= known


def test_octet_takes_the_arguments_that_it_is_started_with(render: Render) -> None:
    commands = typer.main.get_command(app)
    assert isinstance(commands, typer.core.TyperGroup)
    for component in {component_of(pod) for pod in render.pods} & {"server", "worker"}:
        for container in containers(render.pod(component)):
            name, *options = container["args"]
            # It reads them and does nothing.
            assert commands.commands[name].make_context(name, list(options)).args == []


def found_maps(render: Render) -> set[str]:
    return {reference["name"] for reference in found(render.pods, "configMapRef")}


def test_servers_alone_listen_wider_than_loopback_and_only_behind_the_policy(
    render: Render, name: str
) -> None:
    for pod in render.pods:
        for container in containers(pod):
            said = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
            listens = container["name"] == "server"
            asks = not GOOD[name].get("noAuth")
            assert ("OCTET_ADMIN_KEY" in said) == (listens and asks)
            assert ("OCTET_NO_AUTH" in said) == (listens and not asks)
            assert said.get("OCTET_HOST") in (("0.0.0.0",) if listens else ("127.0.0.1", None))
    policies = render.of_kind("NetworkPolicy")
    assert bool(policies) == (name != "exposed")


def test_everything_is_denied_that_no_policy_allows(render: Render, name: str) -> None:
    if name == "exposed":
        return
    [deny] = [
        policy for policy in render.of_kind("NetworkPolicy") if policy["metadata"]["name"].endswith("-deny")
    ]
    assert deny["spec"].keys() == {"podSelector", "policyTypes"}
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert all(selects(deny["spec"]["podSelector"], labels_of(pod)) for pod in render.pods)
    for policy in render.of_kind("NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"], labels_of(pod)) for pod in render.pods)
        # No peers, or one of whom nothing is said, would be everybody.
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"]
            assert all(any(selector for selector in peer.values()) for peer in rule["from"])


def test_servers_have_the_time_to_answer_what_they_admitted(render: Render) -> None:
    spec = render.pod("server")["spec"]
    [sleep] = found(spec, "preStop")
    drain_s = int(sleep["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= drain_s + LONGEST_S


def test_no_host_is_baked_in(render: Render) -> None:
    services = render.named("Service")
    addresses = [
        address
        for text in texts(render.manifests)
        for address in re.findall(r"\b[a-z0-9]+://[^\s\"']+", text)
        if not address.startswith(("s3:", "file:"))
    ]
    for address in addresses:
        host = urlsplit(address).hostname
        assert host is None or host in services or host.endswith(".invalid") or host.startswith("{")


def test_gpus_go_to_servers_and_workers_alike(render: Render, name: str) -> None:
    wanted = GOOD[name].get("gpu", {}).get("count")
    for component in {component_of(pod) for pod in render.pods} & {"server", "worker"}:
        spec = render.pod(component)["spec"]
        assert spec["containers"][0]["resources"]["limits"].get(GPU) == wanted
        assert spec.get("runtimeClassName") == ("nvidia" if wanted else None)
        tolerated = {toleration["key"] for toleration in spec.get("tolerations", ())}
        assert (GPU in tolerated) == bool(wanted)


def test_one_database_and_store_for_all_or_one_pod(render: Render) -> None:
    components = {component_of(pod) for pod in render.pods}
    [server] = render.pod("server")["spec"]["containers"]
    shared = {"OCTET_DATABASE_URL", "OCTET_STORE_URL"} <= {variable["name"] for variable in server["env"]}
    assert ("worker" in components) == shared
    assert bool(render.pod("server")["spec"].get("initContainers")) == shared
