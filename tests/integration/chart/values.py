"""Sets of values that the chart is rendered with."""

from typing import Any

from engines.options import Batching
from service.server import ENDING_S

Values = dict[str, Any]

LONGEST_S = Batching().timeout_ms / 1e3 + ENDING_S
"""What a server may take after SIGTERM, unless builds ask for more."""
POSTGRESQL = "postgresql://octet:secret@database.invalid/octet"
EXTERNAL: Values = {
    "database": {"url": POSTGRESQL},
    "store": {"url": "s3://models/octet", "accessKeyId": "key", "secretAccessKey": "secret"},
}
KEDA: Values = {
    "server": {"autoscaling": {"kind": "keda"}},
    "worker": {"keda": {"enabled": True}},
    "prometheus": {"address": "http://prometheus.invalid:9090"},
}
WATCHED: Values = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "runbooks": "https://wiki.invalid/octet"},
    "dashboard": {"enabled": True},
}
INGRESS: Values = {
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "hosts": ["octet.invalid"],
        "tls": [{"secretName": "octet-tls", "hosts": ["octet.invalid"]}],
    },
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["octet.invalid"]},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
}
GPU: Values = {"gpu": {"enabled": True, "count": 2, "runtimeClassName": "nvidia"}, "planSecret": "long"}
COLLECTOR: Values = {
    "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.invalid:4318"}],
    "networkPolicy": {
        "egress": [
            {
                "ports": [{"port": 4318}],
                "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traces"}}}],
            }
        ]
    },
}
PLACED: Values = {
    "nodeSelector": {"pool": "octet"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
            }
        }
    },
    "podAnnotations": {"team": "models"},
    "priorityClassName": "high",
}


def merged(*parts: Values) -> Values:
    """All of them, as Helm merges several files of values."""
    whole: Values = {}
    for part in parts:
        for key, value in part.items():
            nested = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = merged(whole[key], value) if nested else value
    return whole


GOOD: dict[str, Values] = {
    "default": {},
    "gpu": GPU,
    "external": EXTERNAL,
    "existing secret": {
        "existingSecret": "mine",
        "database": {"external": True},
        "store": {"url": "s3://models", "endpoint": "https://s3.invalid", "port": 9000},
    },
    "bundled": {"postgresql": {"enabled": True}, "store": {"claim": "shared"}},
    "keda": merged(EXTERNAL, KEDA),
    "jobs": merged(EXTERNAL, KEDA, {"worker": {"keda": {"kind": "job"}}}),
    "jobs that may be moved": merged(
        GPU,
        {
            "postgresql": {"enabled": True},
            "store": {"claim": "shared"},
            "worker": {
                "keda": {"enabled": True, "kind": "job", "maxReplicas": 20},
                "podAnnotations": {"karpenter.sh/do-not-disrupt": "false"},
            },
        },
    ),
    "hpa": merged(EXTERNAL, {"server": {"autoscaling": {"kind": "hpa"}}}),
    "no time to spare": merged(
        EXTERNAL, {"server": {"drainSeconds": 7, "gracePeriodSeconds": int(7 + LONGEST_S)}}
    ),
    "ingress": merged(EXTERNAL, INGRESS),
    "hardened": merged(
        EXTERNAL,
        {
            "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "registry"}]},
            "serviceAccount": {"create": False, "name": "restricted"},
            "topologySpread": {"whenUnsatisfiable": "DoNotSchedule"},
        },
    ),
    "on a volume": {"persistence": {"existingClaim": "models"}, "podDisruptionBudget": {"enabled": False}},
    "traced": COLLECTOR,
    "no keys": {"noAuth": True},
    "no keys in a fleet": merged(EXTERNAL, {"noAuth": True}),
    "exposed": {
        "adminKey": "a" * 32,
        "networkPolicy": {"enabled": False},
        "service": {"type": "LoadBalancer"},
    },
    "everything": merged(
        KEDA,
        WATCHED,
        INGRESS,
        GPU,
        COLLECTOR,
        {
            "postgresql": {"enabled": True, "storageClass": "fast"},
            "planSecret": "",
            "existingSecret": "",
            "store": {
                "url": "s3://models/octet",
                "endpoint": "http://s3.invalid:9000",
                "accessKeyId": "key",
                "secretAccessKey": "secret",
            },
            "engineCache": {"claim": "engines"},
            "settings": {"OCTET_LANES": "2", "OCTET_ACCESS_LOG": "1"},
            "serviceAccount": {"annotations": {"role": "octet"}},
            "server": PLACED,
            "worker": PLACED,
        },
    ),
}
"""What must render."""

BAD: dict[str, tuple[Values, str]] = {
    "a wrong key": ({"sever": {"replicas": 2}}, "'sever' not allowed"),
    "a wrong key below": ({"server": {"replica": 2}}, "'replica' not allowed"),
    "an unknown setting": ({"settings": {"OCTET_LANE": "2"}}, "'OCTET_LANE' not allowed"),
    "a setting that the chart decides": ({"settings": {"OCTET_HOST": "::"}}, "'OCTET_HOST' not allowed"),
    "a wrong kind": ({"server": {"replicas": "two"}}, "/server/replicas"),
    "no limit": ({"server": {"resources": {"limits": {"cpu": None}}}}, "'cpu'"),
    "a key for nobody": ({"noAuth": True, "adminKey": "a" * 32}, "nobody would be asked for it"),
    "a key that is guessed": ({"adminKey": "secret"}, "/adminKey"),
    "two secrets with a key": ({"existingSecret": "mine", "adminKey": "a" * 32}, "Keep one of both"),
    "no store": ({"database": {"url": POSTGRESQL}}, "store.url"),
    "no database": ({"store": {"url": "s3://models"}}, "database.url"),
    "two stores": (merged(EXTERNAL, {"store": {"claim": "shared"}}), "one place"),
    "two databases": (merged(EXTERNAL, {"postgresql": {"enabled": True}}), "keep one of"),
    "two secrets": (merged(EXTERNAL, {"existingSecret": "mine"}), "Keep one of both"),
    "a secret that is not named": (
        {"database": {"external": True}, "store": {"url": "s3://models"}},
        "existingSecret is empty",
    ),
    "scaling of one": ({"server": {"autoscaling": {"kind": "hpa"}}}, "does not scale"),
    "scaling by nothing": (
        merged(EXTERNAL, {"server": {"autoscaling": {"kind": "keda"}}}),
        "prometheus.address is empty",
    ),
    "no time to drain": (
        {"server": {"drainSeconds": 7, "gracePeriodSeconds": int(7 + LONGEST_S) - 1}},
        f"Set it to {7 + LONGEST_S:g} or more",
    ),
    "jobs that nobody starts": (
        merged(EXTERNAL, {"worker": {"keda": {"kind": "job"}}}),
        "Set worker.keda.enabled to true",
    ),
    "jobs without builds": (
        merged(EXTERNAL, {"worker": {"keda": {"enabled": True, "kind": "job", "minReplicas": 1}}}),
        "worker.keda.minReplicas is 1",
    ),
    "jobs of one pod": ({"worker": {"keda": {"enabled": True, "kind": "job"}}}, "does not scale"),
    "a kind that there is not": (
        merged(EXTERNAL, {"worker": {"keda": {"enabled": True, "kind": "pod"}}}),
        "/worker/keda/kind",
    ),
    "every host": ({"ingress": {"enabled": True}}, "ingress.hosts is empty"),
    "no gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
}
"""What must be refused, and what the message says."""
