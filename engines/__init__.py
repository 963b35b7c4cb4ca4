"""octet's engines: FP32 ONNX in, a proven 8-bit engine out. A library: no HTTP, no database, no settings.

What stands here is the public API. It loads lazily, so that importing the package, or a module beside this one,
loads no native library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.building import quantize
    from engines.errors import EngineError
    from engines.fidelity.accuracy import Accuracy, OutputAccuracy
    from engines.loading import LoadedEngine, hardware_key, load_engine
    from engines.model.inspection import Inspection, inspect
    from engines.model.tensors import TensorSpec
    from engines.options import BuildOptions, CalibrationMethod, Contract, Metric, Precision
    from engines.proof.proof import Proof, Verification
    from engines.reports.report import Report, Verdict
    from engines.runtimes.base import Engine
    from engines.runtimes.fit import Fit

__all__ = [
    "Accuracy",
    "BuildOptions",
    "CalibrationMethod",
    "Contract",
    "Engine",
    "EngineError",
    "Fit",
    "Inspection",
    "LoadedEngine",
    "Metric",
    "OutputAccuracy",
    "Precision",
    "Proof",
    "Report",
    "TensorSpec",
    "Verdict",
    "Verification",
    "hardware_key",
    "inspect",
    "load_engine",
    "quantize",
]

_HOMES = {
    "Accuracy": "fidelity.accuracy",
    "BuildOptions": "options",
    "CalibrationMethod": "options",
    "Contract": "options",
    "Engine": "runtimes.base",
    "EngineError": "errors",
    "Fit": "runtimes.fit",
    "Inspection": "model.inspection",
    "LoadedEngine": "loading",
    "Metric": "options",
    "OutputAccuracy": "fidelity.accuracy",
    "Precision": "options",
    "Proof": "proof.proof",
    "Report": "reports.report",
    "TensorSpec": "model.tensors",
    "Verdict": "reports.report",
    "Verification": "proof.proof",
    "hardware_key": "loading",
    "inspect": "model.inspection",
    "load_engine": "loading",
    "quantize": "building",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
