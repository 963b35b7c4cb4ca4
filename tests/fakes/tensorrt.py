"""TensorRT's Python bindings on the simulated GPU, for the calls that octet makes, in the order that they have to come.

A plan is the ONNX file behind a header that says what it was built for; onnxruntime computes it.
"""

import enum
import json
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from engines.errors import EngineError
from engines.runtimes.reference import ReferenceSession
from tests.fakes import gpu

if gpu.the.settings.no_tensorrt:
    raise ImportError(gpu.the.settings.no_tensorrt)

__version__ = gpu.the.settings.tensorrt
_MAJOR = int(__version__.split(".")[0])
_MAGIC = b"fake plan\n"
_UNKNOWN_OPERATORS = {"Det", "SequenceAt", "StringNormalizer", "Unique", "TfIdfVectorizer"}


class _Enum(enum.Enum):
    """As pybind11's: no integer, but it can be made one."""

    def __int__(self) -> int:
        return int(self.value)


class MemoryPoolType(_Enum):
    WORKSPACE = 0


class BuilderFlag(_Enum):
    TF32 = 7


class NetworkDefinitionCreationFlag(_Enum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(_Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class LayerInformationFormat(_Enum):
    ONELINE = 0
    JSON = 1


class TensorIOMode(_Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(_Enum):
    DEVICE = 0
    HOST = 1


class DataType(_Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8


_TYPES: dict[int, DataType] = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.BOOL: DataType.BOOL,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.INT64: DataType.INT64,
}


class ILogger:
    class Severity(_Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING

    def __init__(self) -> None:
        self._initialised = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        raise gpu.MisuseError("a logger without a method log")


class IProgressMonitor:
    def __init__(self) -> None:
        self._initialised = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise gpu.MisuseError("a progress monitor without a method phase_start")

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise gpu.MisuseError("a progress monitor without a method step_complete")

    def phase_finish(self, phase_name: str) -> None:
        raise gpu.MisuseError("a progress monitor without a method phase_finish")


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Dims(tuple[int, ...]):
    __slots__ = ()


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.dtype = _TYPES[value.type.tensor_type.elem_type]
        dims = value.type.tensor_type.shape.dim
        self.shape = Dims(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._strongly_typed = _MAJOR >= 11 or bool(flags & 2)
        self._model: onnx.ModelProto | None = None
        self._inputs: list[ITensor] = []


class ParserError:
    def __init__(self, description: str, node: onnx.NodeProto | None = None) -> None:
        self._description = description
        self._node = node

    def desc(self) -> str:
        return self._description

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _check_initialised(logger)
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            proto = onnx.load_model_from_string(model)
            if path is not None:
                onnx.load_external_data_for_model(proto, str(path).rpartition("/")[0])
        except Exception as error:  # noqa: BLE001 # whatever is wrong with it
            self._errors.append(ParserError(f"Failed to parse the ONNX model: {error}"))
            return False
        unknown = _UNKNOWN_OPERATORS | set(gpu.the.settings.unknown_operators.split(","))
        for node in proto.graph.node:
            if node.op_type in unknown:
                description = f"In node 0 with name: {node.name} and operator: {node.op_type}"
                self._errors.append(
                    ParserError(f"{description} (importPlugin): INVALID_NODE: no plugin", node)
                )
                return False
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not self._network._strongly_typed:
                raise gpu.MisuseError("a network with quantizers that is not strongly typed")
        given = {tensor.name for tensor in proto.graph.initializer}
        values = [value for value in proto.graph.input if value.name not in given]
        if both := {v.name for v in values} & {v.name for v in proto.graph.output}:
            raise gpu.MisuseError(f"{both} are inputs and outputs: TensorRT has no such tensors")
        for value in (*values, *proto.graph.output):
            if value.type.tensor_type.elem_type not in _TYPES:
                self._errors.append(ParserError(f"unsupported type of {value.name}"))
                return False
        self._network._model = proto
        self._network._inputs = [ITensor(value) for value in values]
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        if not all(low <= usual <= high for low, usual, high in zip(min, opt, max, strict=True)):
            raise ValueError("Shape provided for min, opt, max is inconsistent")
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._entries = set(json.loads(content)) if content else set()

    def combine(self, input_cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        self._entries |= input_cache._entries
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(sorted(self._entries)).encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._timings: ITimingCache | None = None
        self._limits: dict[MemoryPoolType, int] = {}

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timings = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        if self._timings is None:
            raise gpu.MisuseError("a timing cache is asked for that was never set")
        return self._timings


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _start(logger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if _MAJOR >= 11 and flags & 2:
            warnings.warn("STRONGLY_TYPED is deprecated", DeprecationWarning, stacklevel=2)
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        gpu.the.require_context("a network is built")
        model = network._model
        if model is None:
            raise gpu.MisuseError("a network is built that nothing was parsed into")
        if BuilderFlag.TF32 in config._flags:
            raise gpu.MisuseError("TF32 is on: what is called FP32 would keep 10 bits of 23")
        if MemoryPoolType.WORKSPACE not in config._limits:
            raise gpu.MisuseError("no limit of the workspace: a build would take all memory of the GPU")
        if not self._profiles_fit(network, config):
            return None
        if config.progress_monitor is not None:
            _check_initialised(config.progress_monitor)
        # TensorRT works and reports in threads of its own.
        stopped: list[bool] = []
        thread = threading.Thread(target=lambda: stopped.append(self._work(config.progress_monitor)))
        thread.start()
        thread.join()
        if stopped != [False]:
            self._logger.log(ILogger.ERROR, "[buildJob.cpp::run::12] Error Code 4: the build was cancelled")
            return None
        content = model.SerializeToString()
        try:
            ReferenceSession(content, threads=1)
        except EngineError as error:
            self._logger.log(ILogger.ERROR, f"[b.cpp::build::1] Error Code 9: Internal Error ({error})")
            return None
        if config._timings is not None:
            config._timings._entries |= {node.op_type for node in model.graph.node}
        shapes = {name: ranges for profile in config._profiles for name, ranges in profile._shapes.items()}
        header = {
            "built_for": _built_for(),
            "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
        }
        return IHostMemory(_MAGIC + json.dumps({**header, "shapes": shapes}).encode() + b"\n" + content)

    def _profiles_fit(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        free = {tensor.name for tensor in network._inputs if -1 in tensor.shape}
        covered = {name for profile in config._profiles for name in profile._shapes}
        if covered - {tensor.name for tensor in network._inputs}:
            raise gpu.MisuseError(f"a profile for {covered}, of which some are no inputs")
        if free - covered:
            text = "Network has dynamic or shape inputs, but no optimization profile has been defined."
            self._logger.log(
                ILogger.ERROR, f"IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error ({text})"
            )
        if config._profiles and not free:
            raise gpu.MisuseError("a profile for a network without free dimensions")
        return not free - covered

    def _work(self, monitor: IProgressMonitor | None) -> bool:
        """Whether the build was stopped."""
        steps, pause_s = 4, float(gpu.the.settings.build_s) / 8
        if monitor is None:
            time.sleep(pause_s * 8)
            return False
        monitor.phase_start("Building Engine", None, 2)
        for step, inner in enumerate(("Optimizing", "Timing")):
            monitor.phase_start(inner, "Building Engine", steps)
            for number in range(steps):
                time.sleep(pause_s)
                if not monitor.step_complete(inner, number):
                    return True
            monitor.phase_finish(inner)
            if not monitor.step_complete("Building Engine", step):
                return True
        monitor.phase_finish("Building Engine")
        return False


class EngineInspector:
    def __init__(self, model: onnx.ModelProto, *, detailed: bool) -> None:
        self._model = model
        self._detailed = detailed

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # NVIDIA's name
        if format is not LayerInformationFormat.JSON:
            raise gpu.MisuseError("octet reads JSON")
        if not self._detailed:
            return json.dumps({"Layers": [node.name for node in self._model.graph.node]})
        return json.dumps({"Layers": list(self._layers()), "Bindings": []})

    def _layers(self) -> list[dict[str, Any]]:
        """Each layer with the quantizers that feed it; quantizers of inputs of the network stand alone."""
        made = {output: node for node in self._model.graph.node for output in node.output}
        inputs = {value.name for value in self._model.graph.input}
        graph = onnx.shape_inference.infer_shapes(self._model).graph
        halves = {
            value.name
            for value in (*graph.value_info, *graph.input)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16
        }
        float8 = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN}
        layers = []
        for node in self._model.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in inputs:
                layers.append(_layer(node.name, "Reformat", "Row major Int8 format", [node]))
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            sources = [made[name] for name in node.input if name in made]
            fed = [source for source in sources if source.op_type == "DequantizeLinear"]
            floating = (
                "Row major linear FP16" if node.input and node.input[0] in halves else "Row major linear FP32"
            )
            eight = "Row major FP8 format" if fed and fed[0].input[2] in float8 else "Row major Int8 format"
            kind = eight if fed and fed[0] is sources[0] else floating
            layers.append(_layer(node.name or node.output[0], "kgen", kind, [*fed, node]))
        return layers


class ICudaEngine:
    def __init__(self, header: dict[str, Any], model: bytes, logger: ILogger) -> None:
        self._header = header
        self._proto = onnx.load_model_from_string(model)
        self._session = ReferenceSession(model, threads=1)
        self._logger = logger
        given = {tensor.name for tensor in self._proto.graph.initializer}
        self._inputs = [ITensor(value) for value in self._proto.graph.input if value.name not in given]
        self._outputs = [ITensor(value) for value in self._proto.graph.output]
        self._tensors = {tensor.name: tensor for tensor in (*self._inputs, *self._outputs)}
        self._contexts = 0

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in {tensor.name for tensor in self._inputs} else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._proto, detailed=self._header["detailed"])

    def create_execution_context(self) -> "IExecutionContext | None":
        gpu.the.require_context("an execution context is made")
        if int(gpu.the.settings.memory_bytes) < 1024:
            self._logger.log(
                ILogger.ERROR, "[executionContext.cpp::init::1] Error Code 2: OutOfMemory (no memory)"
            )
            return None
        self._contexts += 1
        return IExecutionContext(self, has_profile=self._contexts == 1)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, *, has_profile: bool) -> None:
        self._engine = engine
        self._has_profile = has_profile
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        # Shapes that were run since they were set: only those may be captured.
        self._ran: set[tuple[Any, ...]] = set()
        self._stream: int | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        gpu.the.require_context("a profile is set")
        gpu.the.stream(stream_handle)
        self._has_profile = profile_index == 0
        return self._has_profile

    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int]) -> bool:
        if not isinstance(shape, tuple | list):
            raise TypeError("set_input_shape(): incompatible function arguments")
        if not self._has_profile:
            raise gpu.MisuseError("a shape is set before an optimization profile")
        [tensor] = [tensor for tensor in self._engine._inputs if tensor.name == name]
        least, _, largest = self._engine._header["shapes"].get(name, (tensor.shape,) * 3)
        if not all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True)):
            return self._fail(
                f"Static dimension mismatch or shape outside of the profile while setting {name}"
            )
        self._shapes[name] = tuple(shape)
        self._output_shapes = {}
        return True

    def infer_shapes(self) -> list[str]:
        missing = [tensor.name for tensor in self._engine._inputs if tensor.name not in self._shapes]
        if missing:
            return missing
        feeds = {
            spec.name: np.zeros(self._shapes[spec.name], spec.dtype) for spec in self._engine._session.inputs
        }
        try:
            outputs = self._engine._session.run(feeds)
        except EngineError as error:
            self._fail(f"Internal Error ({error})")
            raise RuntimeError("infer_shapes error code: -1") from error
        self._output_shapes = {name: array.shape for name, array in outputs.items()}
        return []

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._shapes:
            return Dims(self._shapes[name])
        if name not in self._output_shapes:
            raise gpu.MisuseError(f"the shape of {name!r} is asked for before shapes were inferred")
        return Dims(self._output_shapes[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors:
            return self._fail(f"Given invalid tensor name: {name}")
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu.the.require_context("a batch is enqueued")
        stream = gpu.the.stream(int(stream_handle))
        if self._stream not in (None, stream.handle):
            raise gpu.MisuseError("an execution context is used in two streams")
        self._stream = stream.handle
        unbound = [name for name in self._engine._tensors if name not in self._addresses]
        unset = [tensor.name for tensor in self._engine._inputs if tensor.name not in self._shapes]
        if unbound or unset:
            raise gpu.MisuseError(
                f"a batch is enqueued with tensors unbound {unbound} or without shapes {unset}"
            )
        key = tuple(sorted(self._shapes.items()))
        if stream.capturing is not None and key not in self._ran:
            return self._fail("operation not permitted when stream is capturing")
        self._ran.add(key)
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        gpu.the.put(stream.handle, lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {}
        for spec in self._engine._session.inputs:
            size = int(np.prod(shapes[spec.name])) * spec.dtype.itemsize
            memory = gpu.the.memory(addresses[spec.name], size)
            feeds[spec.name] = memory.view(spec.dtype).reshape(shapes[spec.name]).copy()
        for name, array in self._engine._session.run(feeds).items():
            gpu.the.memory(addresses[name], array.nbytes)[...] = (
                np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            )

    def _fail(self, text: str) -> bool:
        self._engine._logger.log(
            ILogger.ERROR, f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error ({text})"
        )
        return False


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        _start(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        gpu.the.require_context("a plan is deserialized")
        content = bytes(serialized_engine)
        if not content.startswith(_MAGIC):
            raise gpu.MisuseError("a plan that TensorRT never wrote: it would be run as native code")
        header, _, model = content.removeprefix(_MAGIC).partition(b"\n")
        described = json.loads(header)
        if described["built_for"] != _built_for():
            text = f"built for {described['built_for']}, this is {_built_for()}"
            self._logger.log(
                ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error ({text})"
            )
            return None
        return ICudaEngine(described, model, self._logger)


def _built_for() -> list[str]:
    settings = gpu.the.settings
    return [settings.tensorrt, settings.gpu_name, settings.capability]


def _start(logger: ILogger) -> None:
    _check_initialised(logger)
    if gpu.the.settings.driver_too_old:
        text = f"Cuda Runtime ({gpu.the.settings.driver_too_old})"
        logger.log(ILogger.ERROR, f"[checkMacros.cpp::catchCudaError::205] Error Code 1: {text}")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def _check_initialised(base: Any) -> None:
    if not hasattr(base, "_initialised"):
        raise TypeError("__init__() of the base class must be called when overriding __init__")


def _layer(name: str, kind: str, datatype: str, nodes: list[onnx.NodeProto]) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Dimensions": [], "Format/Datatype": datatype}],
        "Outputs": [],
        "Metadata": "\x1e".join(f"[ONNX Layer: {node.name}]" for node in nodes),
    }
