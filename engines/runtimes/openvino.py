"""OpenVINO: compiles artifacts for this machine's processor and serves them."""

import functools
import hashlib
import platform
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from engines.errors import CompileError, EngineRunError
from engines.runtimes.base import Engine, Runtime, Slot
from engines.runtimes.engine_cache import EngineCache
from engines.runtimes.saturation import saturation_probe
from engines.runtimes.slots import PooledEngine
from engines.tensors import Array, TensorSpec

# `import openvino` imports its model converter, which reports that to Intel unless the user once opted out.
# octet needs no converter and reports nothing to anyone: empty modules take the places of both.
for _name in ("openvino.tools.ovc", "openvino_telemetry"):
    sys.modules.setdefault(_name, types.ModuleType(_name))

import openvino as ov  # noqa: E402 # after the converter has been kept out

_DTYPES: Mapping[str, type[np.generic]] = {
    "boolean": np.bool_,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
}
"""OpenVINO's names of element types. Its own `to_dtype` gives bfloat16 and FP8 a type that they are not."""

_ALIGNMENT_BYTES = 64
"""A cache line, and the width of AVX512."""

_CONFIG: Mapping[str, Any] = {
    # Else processors with bfloat16 run what is not quantized in it.
    "INFERENCE_PRECISION_HINT": "f32",
    # Else float matrix products with 8-bit constant weights get their activations quantized on the fly.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    # All threads work on one batch: the batcher gives the engine one at a time.
    "NUM_STREAMS": 1,
    # Every process would pin its threads to the same first cores: two processes with a one-threaded engine
    # each ran 23 batches a second pinned and 46 not, on two cores.
    "ENABLE_CPU_PINNING": False,
}


class OpenVINORuntime(Runtime):
    """OpenVINO on the processor, in the float32 and int8 kernels of oneDNN."""

    name = "openvino"

    def hardware_key(self) -> str:
        """OpenVINO's version, the machine, the kernel that runs 8-bit convolutions and the weight bits.

        The kernel is read from a compiled engine, so that it is the one in force, whatever limits it: the
        processor, the hypervisor or `ONEDNN_MAX_CPU_ISA`. Usable as a file name.
        """
        probe = _probe()
        version = "-".join(ov.get_version().split("-")[:2])
        key = f"openvino-{version}-{platform.machine()}-{probe.kernel}-w{probe.weight_bits}"
        return re.sub(r"[^A-Za-z0-9._-]", "_", key).lower()

    def weight_bits(self) -> int:
        """7 where 8-bit weights were seen to saturate intermediate sums, else 8; tried once per process."""
        return _probe().weight_bits

    def compile(self, model: Path, *, threads: int, cache: Path | None = None) -> Engine:
        content = model.read_bytes()
        input_names, output_names = _names(content)
        config = {**_CONFIG, "INFERENCE_NUM_THREADS": threads}
        compiled = None
        key = ""
        if cache is not None:
            key = f"{self.hardware_key()}/{_digest(content)}"
            kept = EngineCache(cache).get(key)
            compiled = None if kept is None else _restored(kept, config)
        if compiled is None:
            compiled = _compiled(content, config)
            if cache is not None:
                EngineCache(cache).put(key, compiled.export_model().getvalue())
        return _OpenVINOEngine(compiled, input_names, output_names)


class _OpenVINOEngine(PooledEngine):
    def __init__(self, compiled: Any, input_names: list[str], output_names: list[str]) -> None:
        inputs = _positions(compiled.inputs, input_names)
        self._outputs = _positions(compiled.outputs, output_names)
        super().__init__(
            tuple(_spec(name, compiled.inputs[position]) for name, position in inputs.items()),
            tuple(_spec(name, compiled.outputs[position]) for name, position in self._outputs.items()),
        )
        self._inputs = inputs
        self._compiled = compiled

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        buffers = {spec.name: _aligned(shapes[spec.name], spec.dtype) for spec in self.inputs}
        request = self._compiled.create_infer_request()
        for name, buffer in buffers.items():
            request.set_input_tensor(self._inputs[name], ov.Tensor(buffer, shared_memory=True))
        return _OpenVINOSlot(request, buffers, self._outputs)

    def close(self) -> None:
        super().close()
        self._compiled = None


class _OpenVINOSlot:
    def __init__(self, request: Any, inputs: Mapping[str, Array], outputs: Mapping[str, int]) -> None:
        self.inputs = inputs
        self._request = request
        self._outputs = outputs

    def run(self) -> Mapping[str, Array]:
        try:
            results = self._request.infer(share_outputs=True).to_tuple()
        except RuntimeError as error:
            raise EngineRunError(f"OpenVINO failed on this batch: {_explain(str(error))}.") from error
        return {name: results[position] for name, position in self._outputs.items()}


@dataclass(frozen=True, kw_only=True)
class _Probe:
    # Name of the kernel that runs an 8-bit convolution, such as `brgconv_avx512_i8`.
    kernel: str
    weight_bits: int


@functools.cache
def _core() -> Any:
    return ov.Core()


@functools.cache
def _probe() -> _Probe:
    probe = saturation_probe()
    compiled = _compiled(probe.model, {**_CONFIG, "INFERENCE_NUM_THREADS": 1})
    results = compiled(probe.feeds).to_tuple()
    outputs = _positions(compiled.outputs, list(probe.expected))
    right = probe.passes({name: results[position] for name, position in outputs.items()})
    kernels = [
        str(node.get_rt_info()["primitiveType"].value)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].value == "Convolution"
    ]
    return _Probe(kernel="+".join(kernels) or "unknown", weight_bits=8 if right else 7)


def _compiled(model: bytes, config: Mapping[str, Any]) -> Any:
    try:
        return _core().compile_model(_core().read_model(model, b""), "CPU", dict(config))
    except RuntimeError as error:
        raise CompileError(f"OpenVINO cannot compile the model: {_explain(str(error))}.") from error


def _restored(engine: bytes, config: Mapping[str, Any]) -> Any | None:
    """The engine that was exported, or None where this OpenVINO does not take it: it is compiled anew."""
    try:
        return _core().import_model(engine, "CPU", dict(config))
    except RuntimeError:
        return None


def _digest(model: bytes) -> str:
    """What an engine is kept under, beside the hardware key: the artifact and how it is compiled."""
    digest = hashlib.sha256(repr(sorted(_CONFIG.items())).encode())
    digest.update(model)
    return digest.hexdigest()


def _names(model: bytes) -> tuple[list[str], list[str]]:
    """The inputs and outputs as the ONNX file names and orders them."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except DecodeError as error:
        raise CompileError("the artifact is not an ONNX file; build the version again.") from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    return inputs, [value.name for value in graph.output]


def _positions(ports: list[Any], names: list[str]) -> dict[str, int]:
    """Where each ONNX name is among OpenVINO's ports, which have several names where nodes were removed."""
    found = {name: position for position, port in enumerate(ports) for name in port.names}
    missing = [name for name in names if name not in found]
    if missing:
        raise CompileError(f"OpenVINO lost the tensor {missing[0]!r} while compiling; it may be unused.")
    return {name: found[name] for name in names}


def _spec(name: str, port: Any) -> TensorSpec:
    type_name = port.element_type.get_type_name()
    if type_name not in _DTYPES:
        raise CompileError(f"tensor {name!r} has the element type {type_name}, which numpy does not have.")
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(name=name, dtype=np.dtype(_DTYPES[type_name]), shape=shape)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Zeros that start on a cache line, which OpenVINO reads in place."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


_NOISE = re.compile(
    r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|FrontEnd API failed with \w+:"
    r"|Model wasn't fully converted\.|Summary:|To facilitate the conversion.*",
    re.DOTALL,
)
_LONGEST = 300


def _explain(text: str) -> str:
    """What OpenVINO says, without its source lines."""
    return " ".join(_NOISE.sub(" ", text).split()).strip("-. ")[:_LONGEST] or "it gives no reason"
