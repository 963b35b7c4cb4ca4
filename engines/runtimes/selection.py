"""Which runtime builds and serves on this machine: TensorRT where it runs, else OpenVINO."""

import functools

from engines.errors import EngineRunError, InvalidOptionsError
from engines.options import BuildOptions, RuntimeName
from engines.runtimes.base import Runtime
from engines.runtimes.openvino import OpenVINORuntime
from engines.runtimes.tensorrt.profiles import ShapeLimits

_INSTALL = "pip install 'octet[tensorrt]'"


def runtime_for(options: BuildOptions, *, streams: int = 1) -> Runtime:
    """The runtime that a build with these options uses here; `streams` batches of an engine run side by side.

    Raises:
        InvalidOptionsError: they ask for TensorRT, which does not run here; the message says why not.
    """
    if options.runtime is RuntimeName.OPENVINO:
        return OpenVINORuntime(streams=streams)
    problem = tensorrt_problem()
    if problem is None:
        from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it needs TensorRT to import

        limits = ShapeLimits(max_rows=options.batching.max_batch_rows, profile=options.profile)
        return TensorRTRuntime(limits)
    if options.runtime is RuntimeName.TENSORRT:
        raise InvalidOptionsError(
            f"option 'runtime' asks for tensorrt, which does not run on this machine: {problem}; use \"auto\" or "
            '"openvino", or mend that.'
        )
    return OpenVINORuntime(streams=streams)


def describe_runtime() -> str:
    """What `runtime: auto` means here, in one sentence for the log."""
    problem = tensorrt_problem()
    if problem is not None:
        return f"engines run on OpenVINO; TensorRT was not taken: {problem}"
    runtime = runtime_for(BuildOptions())
    return f"engines run on TensorRT ({runtime.hardware_key()}). {runtime.caveat or ''}".strip()


@functools.cache
def tensorrt_problem() -> str | None:
    """Why TensorRT does not run here, as a clause; None where it does. Found out once per process."""
    return device_problem() or _library_problem()


def device_problem() -> str | None:
    """Why CUDA does not run here, as a clause; None where it does."""
    try:
        from engines.runtimes.cuda import default_device  # noqa: PLC0415 # it needs pycuda to import
    except ModuleNotFoundError:
        return f"pycuda is not installed ({_INSTALL})"
    except ImportError as error:
        return f"there is no NVIDIA driver that pycuda can load ({_words(error)})"
    try:
        default_device()
    except EngineRunError as error:
        return _words(error)
    return None


def _library_problem() -> str | None:
    """Why TensorRT does not run though there is a GPU."""
    from engines.runtimes.cuda import default_device, driver_version  # noqa: PLC0415 # it needs pycuda to import

    try:
        from engines.runtimes.tensorrt import library  # noqa: PLC0415 # it needs TensorRT to import
    except ModuleNotFoundError:
        return f"TensorRT is not installed ({_INSTALL})"
    except (ImportError, OSError) as error:
        return f"TensorRT's libraries cannot be loaded ({_words(error)})"
    if (problem := library.version_problem()) is not None:
        return problem
    device, driver = default_device(), driver_version()
    with device.active():
        problem = library.starting_problem()
    if problem is None:
        return None
    return f"{problem}; the driver of {device.name} knows CUDA {driver // 1000}.{driver % 1000 // 10}"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
