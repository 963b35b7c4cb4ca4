"""Renders a chart with Helm itself, in the environment that `make chart` makes: `python rendering.py CHART < VALUES`.

Reads {name: values} as JSON and writes {name: what came of it}. Helm installs into an API server that knows some kinds,
has nothing, and takes everything. Needs nothing of octet.
"""

import asyncio
import base64
import gzip
import http.server
import json
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, ClassVar

import helm_sdkpy
import kubernetes_validate
import yaml

VERSION = "1.33.0"
NAMESPACE = "trials"
AGAIN = ("default", "bundled")
"""Sets of values that are rendered a second time, where what they made is there already."""
# Kinds of groups that this API server has; the resource is the plural that Kubernetes has it under.
KINDS = {
    "v1": ["ConfigMap", "Secret", "Service", "ServiceAccount", "PersistentVolumeClaim", "Pod", "Namespace"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "gateway.networking.k8s.io/v1": ["HTTPRoute"],
    "keda.sh/v1alpha1": ["ScaledJob", "ScaledObject", "TriggerAuthentication"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
}
CUSTOM = ("keda.sh/", "monitoring.coreos.com/", "gateway.networking.k8s.io/")
"""Groups whose schemas are not Kubernetes' own."""
PACKED = re.compile(rb"H4sI[A-Za-z0-9+/]{100,}=*")
"""A gzip in Base64."""


def plural(kind: str) -> str:
    name = kind.lower()
    if name.endswith("y"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


class Cluster(http.server.BaseHTTPRequestHandler):
    """The part of Kubernetes' API that an installation needs."""

    posted: list[bytes]
    # Secrets that are there, by path.
    secrets: ClassVar[dict[str, dict[str, Any]]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self.secrets.get(path) or self.discovered(path)
        missing = {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "code": 404,
            "reason": "NotFound",
        }
        self.answer(200 if found else 404, json.dumps(found or missing).encode(), "application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append(body)
        self.answer(201, body, self.headers["Content-Type"])

    def do_PUT(self) -> None:
        self.do_POST()

    def do_PATCH(self) -> None:
        self.do_POST()

    def discovered(self, path: str) -> dict[str, Any] | None:
        if path == "/version":
            return {"major": "1", "minor": VERSION.split(".")[1], "gitVersion": f"v{VERSION}"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {"kind": "APIGroupList", "groups": [self.group(name) for name in KINDS if "/" in name]}
        for name, kinds in KINDS.items():
            if path == (f"/apis/{name}" if "/" in name else f"/api/{name}"):
                return {"kind": "APIResourceList", "groupVersion": name, "resources": self.resources(kinds)}
            # Lists, as of earlier releases, are empty.
            if path.endswith(("/secrets", "/configmaps")):
                return {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []}
        return None

    def group(self, name: str) -> dict[str, Any]:
        version = {"groupVersion": name, "version": name.partition("/")[2]}
        return {"name": name.partition("/")[0], "versions": [version], "preferredVersion": version}

    def resources(self, kinds: list[str]) -> list[dict[str, Any]]:
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        return [
            {"name": plural(kind), "kind": kind, "namespaced": kind != "Namespace", "verbs": verbs}
            for kind in kinds
        ]

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def release(posted: list[bytes]) -> dict[str, Any]:
    """What Helm keeps of the release that it installed last, in a Secret that it sends in protobuf."""
    kept = [found for body in posted for found in PACKED.findall(body)][-1]
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(kept)))
    return found


def rendered(configuration: Any, chart: str, values: dict[str, Any], posted: list[bytes]) -> Any:
    posted.clear()
    try:
        asyncio.run(helm_sdkpy.Install(configuration).run("trial", chart, values, wait=False))
    except helm_sdkpy.HelmError as error:
        return {"error": str(error)}
    made = release(posted)
    texts = [made["manifest"], *(hook["manifest"] for hook in made.get("hooks", ()))]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    return {"manifests": manifests, "invalid": invalid(manifests), "notes": made["info"]["notes"]}


def rendered_again(
    configuration: Any, chart: str, values: dict[str, Any], posted: list[bytes], before: dict[str, Any]
) -> Any:
    """What comes of a chart whose Secrets are there from `before`."""
    owner = {"meta.helm.sh/release-name": "trial", "meta.helm.sh/release-namespace": NAMESPACE}
    Cluster.secrets = {
        f"/api/v1/namespaces/{NAMESPACE}/secrets/{manifest['metadata']['name']}": manifest
        | {"metadata": manifest["metadata"] | {"namespace": NAMESPACE, "annotations": owner}}
        for manifest in before["manifests"]
        if manifest["kind"] == "Secret"
    }
    try:
        return rendered(configuration, chart, values, posted)
    finally:
        Cluster.secrets = {}


def linted(configuration: Any, chart: str, values: dict[str, Any]) -> Any:
    """What Helm blames in the chart with these values; its lint takes none, so they become the defaults of a copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(chart, Path(folder) / "octet")
        defaults = copy / "values.yaml"
        whole = merged(yaml.safe_load(defaults.read_text()), values)
        defaults.write_text(yaml.safe_dump(whole))
        return asyncio.run(helm_sdkpy.Lint(configuration).run(str(copy)))


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """As Helm puts values over the defaults."""
    return defaults | {
        key: merged(defaults[key], value)
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
    }


def jobs(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs that KEDA starts, as manifests of their own."""
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": manifest["metadata"],
            "spec": manifest["spec"]["jobTargetRef"],
        }
        for manifest in manifests
        if manifest["kind"] == "ScaledJob"
    ]


def invalid(manifests: list[dict[str, Any]]) -> list[str]:
    """What Kubernetes' schemas say against manifests of its own kinds."""
    said = []
    for manifest in [*manifests, *jobs(manifests)]:
        if manifest["apiVersion"].startswith(CUSTOM):
            continue
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            said.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
    return said


def main() -> None:
    chart = sys.argv[1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster) as server:
        posted: list[bytes] = []
        Cluster.posted = posted
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "trial",
            "clusters": [{"name": "trial", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "trial", "context": {"cluster": "trial", "user": "trial"}}],
            "users": [{"name": "trial", "user": {}}],
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kubeconfig"
            file.write_text(yaml.safe_dump(kubeconfig))
            configuration = helm_sdkpy.Configuration(namespace=NAMESPACE, kubeconfig=str(file))
            sets = json.load(sys.stdin)
            outcome = {name: rendered(configuration, chart, values, posted) for name, values in sets.items()}
            lints = {
                name: linted(configuration, chart, values)
                for name, values in sets.items()
                if "error" not in outcome[name]
            }
            again = {
                name: rendered_again(configuration, chart, sets[name], posted, outcome[name])
                for name in AGAIN
            }
        json.dump({"renders": outcome, "lints": lints, "again": again}, sys.stdout)
        server.shutdown()


if __name__ == "__main__":
    main()
