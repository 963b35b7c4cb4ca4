"""OpenVINO: compiles artifacts for this machine's processor and serves them."""

import functools
import hashlib
import platform
import re
import sys
import threading
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from engines.errors import CompileError, EngineError, EngineRunError
from engines.model.external_weights import weights_path, written_beside
from engines.model.signature import input_specs, output_specs
from engines.model.tensors import Array, TensorSpec
from engines.options import Precision
from engines.quantization.unsigned import refine_unsigned
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.buffers import check_int32
from engines.runtimes.engine_cache import EngineCache
from engines.runtimes.held_quantizers import hold_quantizers
from engines.runtimes.openvino_messages import explain, translated
from engines.runtimes.saturation import saturation_probe
from engines.runtimes.shared_buffers import PlacedSlot, SharedBuffersEngine

# `import openvino` imports its model converter, which reports that to Intel unless the user once opted out.
# octet needs no converter and reports nothing to anyone: empty modules take the places of both.
for _name in ("openvino.tools.ovc", "openvino_telemetry"):
    sys.modules.setdefault(_name, types.ModuleType(_name))

import openvino as ov  # noqa: E402 # after the converter has been kept out

_COMPUTED_AS_INT32 = frozenset(np.dtype(name) for name in ("int64", "uint64", "uint32"))
_DTYPES = _COMPUTED_AS_INT32 | {
    np.dtype(name)
    for name in ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "uint8", "uint16")
}
"""Element types that numpy and OpenVINO share; bfloat16 and FP8 they do not."""

_CONFIG: Mapping[str, Any] = {
    # Else processors with bfloat16 run what is not quantized in it.
    "INFERENCE_PRECISION_HINT": "f32",
    # Else float matrix products with 8-bit constant weights get their activations quantized on the fly.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    # Every process would pin its threads to the same first cores. Two processes with a one-threaded engine on
    # two cores: 41 batches a second each when pinned and 50 when not, and 11 against 23 beside other work.
    "ENABLE_CPU_PINNING": False,
}


class OpenVINORuntime(Runtime):
    """OpenVINO on the processor, in the float32 and int8 kernels of oneDNN."""

    name = "openvino"
    unsigned_activations = True
    takes_asymmetric = True

    def __init__(self, *, streams: int = 1) -> None:
        """Starts nothing yet.

        Engines have free dimensions. Up to OpenVINO 2026.3, 8-bit convolutions of such crashed on most machines with
        AMX (openvinotoolkit/openvino#37577). With 2026.4.1 none did on the one that was tried, where ResNet-50 compiled
        for each batch size took a third more time and twice the memory.

        Args:
            streams: batches that an engine runs at the same time, each on its share of the threads.
        """
        self._streams = streams

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

    def emulates(self, precision: Precision) -> bool:
        """FP8 is computed in float32. One value in 500 is rounded to the second nearest, by way of half precision."""
        return precision is Precision.FP8

    def compile(
        self,
        model: Path,
        *,
        threads: int,
        cache: Path | None = None,
        progress: Callable[[float], None] | None = None,  # noqa: ARG002 # it takes too little time to tell of
    ) -> Engine:
        content = as_compiled(model)
        config = {**_CONFIG, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": self._streams}
        weights = weights_path(model) if weights_path(model).is_file() else None
        # Reading such an engine back would cost as much memory and time as compiling it.
        kept = None if cache is None or weights else EngineCache(cache / self.hardware_key())
        return _OpenVINOEngine(_Program(content, config, kept, weights), *_specs(content))


def as_compiled(model: Path) -> bytes:
    """The ONNX file in the form that OpenVINO compiles: see `refine_unsigned` and `hold_quantizers`."""
    content = model.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError:
        return content  # what is wrong with it is said where it is read
    refined = refine_unsigned(proto)
    hold_quantizers(refined)
    served: bytes = refined.SerializeToString(deterministic=True)
    return served


class _OpenVINOEngine(SharedBuffersEngine):
    def __init__(
        self,
        program: "_Program",
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        super().__init__(inputs, outputs)
        self._program = program
        self._compiled: Any = program.compile({})
        # Compiled for single shapes beside the one of free dimensions, because that is faster.
        self._special: dict[tuple[tuple[int, ...], ...], Any] = {}

    def _new_slot(self, buffers: Mapping[str, Array]) -> PlacedSlot:
        shapes = {name: buffer.shape for name, buffer in buffers.items()}
        try:
            self._program.check(shapes)
        except CompileError as error:
            raise EngineRunError(f"OpenVINO cannot run this batch: {error}") from error
        compiled = self._special.get(tuple(shapes.values()), self._compiled)
        request = compiled.create_infer_request()
        ports = _positions(compiled.inputs)
        for name, buffer in buffers.items():
            # An input that nothing reads is not in the engine.
            if name in ports:
                request.set_input_tensor(ports[name], ov.Tensor(buffer, shared_memory=True))
        outputs = _positions(compiled.outputs)
        return _OpenVINOSlot(request, buffers, {spec.name: outputs[spec.name] for spec in self.outputs})

    def specialise(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        self._special[tuple(shapes.values())] = self._program.compile(shapes)
        self.forget(shapes)
        return True

    def generalise(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._special.pop(tuple(shapes.values()), None)
        self.forget(shapes)

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._special.clear()
        self._program.close()


class _Program:
    """A model that OpenVINO has read, not yet compiled."""

    def __init__(
        self, content: bytes, config: Mapping[str, Any], cache: EngineCache | None, weights: Path | None
    ) -> None:
        self._config = config
        self._cache = cache
        self._digest = _digest(content)
        self._model = _read(content, weights)
        self._lock = threading.Lock()

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Infers all shapes of a batch of these input shapes.

        An engine with free dimensions infers them again at run time, but on a single thread OpenVINO 2026.4
        drops the errors of that inference and computes on, past the ends of its buffers.

        Raises:
            CompileError: an operator does not take the shapes that arrive at it; the message names it.
        """
        with self._lock, translated("the shapes do not fit"):
            ports = _positions(self._model.inputs)
            self._model.reshape({ports[name]: list(shape) for name, shape in shapes.items() if name in ports})

    def compile(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Compiles for these input shapes alone, or for any where there are none given.

        Raises:
            CompileError: OpenVINO does not take the model.
        """
        key = f"{self._digest}-{hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:16]}"
        kept = None if self._cache is None else self._cache.get(key)
        compiled = None if kept is None else _restored(kept, self._config)
        if compiled is not None:
            return compiled
        with self._lock, translated("the model cannot be compiled"):
            model = self._model.clone()
        compiled = _compiled(model, shapes, self._config)
        if self._cache is not None:
            self._cache.put(key, compiled.export_model().getvalue())
        return compiled

    def close(self) -> None:
        self._model = None


class _OpenVINOSlot(PlacedSlot):
    def __init__(self, request: Any, inputs: Mapping[str, Array], outputs: Mapping[str, int]) -> None:
        super().__init__(inputs)
        self._request = request
        self._outputs = outputs
        self._wide = {name: array for name, array in inputs.items() if array.dtype in _COMPUTED_AS_INT32}

    def run(self) -> Mapping[str, Array]:
        for name, array in self._wide.items():
            check_int32(name, array)
        try:
            results = self._request.infer(share_outputs=True).to_tuple()
        except RuntimeError as error:
            raise EngineRunError(f"OpenVINO cannot run this batch: {explain(str(error))}.") from error
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
    compiled = _compiled(_read(probe.model), {}, {**_CONFIG, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    results = compiled(probe.feeds).to_tuple()
    outputs = _positions(compiled.outputs)
    right = probe.passes({name: results[outputs[name]] for name in probe.expected})
    kernels = [
        str(node.get_rt_info()["primitiveType"].value)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].value == "Convolution"
    ]
    return _Probe(kernel="+".join(kernels) or "unknown", weight_bits=8 if right else 7)


def _specs(content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs as the ONNX file names, types and orders them."""
    graph = onnx.load_model_from_string(content).graph
    try:
        inputs, outputs = input_specs(graph), output_specs(graph)
    except EngineError as error:
        raise CompileError(str(error)) from error
    for spec in (*inputs, *outputs):
        if spec.dtype not in _DTYPES:
            raise CompileError(
                f"tensor {spec.name!r} has the element type {spec.dtype.name}, which OpenVINO does not hand "
                "to numpy; cast it to float32 in the model."
            )
    return inputs, outputs


def _read(content: bytes, weights: Path | None = None) -> Any:
    """The model; `weights` is the file that its external data refers to, beside which it is read."""
    try:
        # OpenVINO tries every format that it knows on what is no ONNX file, each with a complaint on stderr.
        onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CompileError("the artifact is not an ONNX file; build the version again.") from error
    with translated("the model cannot be read"):
        if weights is None:
            return _core().read_model(content, b"")
        with written_beside(weights, content) as path:
            return _core().read_model(path)


def _compiled(model: Any, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Any:
    with translated("the model cannot be compiled"):
        ports = _positions(model.inputs)
        model.reshape({ports[name]: list(shape) for name, shape in shapes.items() if name in ports})
        return _core().compile_model(model, "CPU", dict(config))


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


def _positions(ports: list[Any]) -> dict[str, int]:
    """Where each name is among OpenVINO's ports, which have several names where nodes were removed."""
    return {name: position for position, port in enumerate(ports) for name in port.names}
