"""Ways through rendered manifests."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Render:
    """What one set of values made."""

    manifests: list[Manifest]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def named(self, kind: str) -> set[str]:
        return {manifest["metadata"]["name"] for manifest in self.of_kind(kind)}

    @property
    def pods(self) -> list[Manifest]:
        """Templates of pods, and pods."""
        return [*self.staying, *self.of_kind("Pod")]

    @property
    def staying(self) -> list[Manifest]:
        """Templates of pods that work until they are ended, or for as long as a build takes."""
        workloads = self.of_kind("Deployment", "StatefulSet")
        jobs = [scaled["spec"]["jobTargetRef"] for scaled in self.of_kind("ScaledJob")]
        return [*(workload["spec"]["template"] for workload in workloads), *(job["template"] for job in jobs)]

    def pod(self, component: str) -> Manifest:
        [found] = [pod for pod in self.pods if component_of(pod) == component]
        return found


def component_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def labels_of(pod: Manifest) -> dict[str, str]:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels


def containers(pod: Manifest) -> list[Manifest]:
    """All of them, the first ones too."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes something with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def found(node: Any, key: str) -> Iterator[Any]:
    """Whatever is under this key, at any depth."""
    if isinstance(node, dict):
        for name, below in node.items():
            if name == key:
                yield below
            yield from found(below, key)
    elif isinstance(node, list):
        for below in node:
            yield from found(below, key)


def texts(node: Any) -> Iterator[str]:
    """All strings that are values."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from texts(below)
    elif isinstance(node, str):
        yield node
