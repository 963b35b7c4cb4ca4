"""What can go wrong between an uploaded model and a running engine.

Every message is one sentence or two that a user can act on: the problem, the value seen, the remedy.
`code` is stable and dotted; clients and the HTTP layer go by it, never by the text.
"""

from typing import ClassVar


class EngineError(Exception):
    """Base of every error that `engines` raises on purpose."""

    code: ClassVar[str] = "engine.error"


class InvalidModelError(EngineError):
    """The upload is not a well-formed ONNX model."""

    code = "model.invalid"


class UnsupportedModelError(EngineError):
    """The model is well-formed ONNX that octet does not take: custom operators, external data, opset, size."""

    code = "model.unsupported"


class InvalidSamplesError(EngineError):
    """The samples do not fit the model, or the file that holds them is broken or hostile."""

    code = "samples.invalid"


class InvalidOptionsError(EngineError):
    """A build option is unknown, out of range or contradicts another."""

    code = "options.invalid"


class CalibrationError(EngineError):
    """The model could not be observed on its samples, for example because it produced NaN."""

    code = "build.calibration"


class CompileError(EngineError):
    """The runtime could not compile the artifact."""

    code = "engine.compile"


class EngineRunError(EngineError):
    """A compiled engine failed on a batch."""

    code = "engine.run"


class EngineRefusedError(EngineError):
    """An engine did not reproduce its proof, so it must not answer."""

    code = "engine.refused"


class ContractMissedError(EngineError):
    """The 8-bit engine misses its contract, and the build was to fail then."""

    code = "build.contract"


class InvalidArtifactError(EngineError):
    """A stored artifact is incomplete or its hashes do not match what was sealed."""

    code = "artifact.invalid"
