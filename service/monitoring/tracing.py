"""Whether spans are written: where the standard variables of OpenTelemetry name a collector.

Without one, neither its SDK nor its exporter is imported. https://opentelemetry.io/docs/specs/otel/configuration/
"""

import importlib
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.monitoring.spans import SpanWriter

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def start_tracing(role: str, environment: Mapping[str, str] = os.environ) -> "SpanWriter | None":
    """What writes the spans of this process; None where no collector is named.

    `role` is what the process is for, such as "server".
    """
    if not wanted(environment):
        return None
    try:
        spans = importlib.import_module("service.monitoring.spans")
    except ImportError as error:
        logger.warning(
            "an OpenTelemetry collector is named, but no span will reach it: %s is not installed; "
            "install octet with its extra `tracing`.",
            error.name,
        )
        return None
    writer: SpanWriter = spans.exporting(role)
    return writer


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector and does not switch traces off."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return any(environment.get(name) for name in _ENDPOINTS) and not off and not none
