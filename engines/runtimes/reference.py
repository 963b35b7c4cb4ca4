"""onnxruntime: the FP32 truth that calibration observes and that every other engine is compared with."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.errors import CompileError, EngineRunError
from engines.model.external_weights import is_large, weights_path, write_model, written_beside
from engines.model.tensors import Array, TensorSpec
from engines.options import Precision
from engines.runtimes.base import Engine, Runtime, Slot, check_feeds
from engines.runtimes.slots import PooledEngine

# From 1.29 on, onnxruntime reports every process and session to Microsoft and keeps an identifier of the machine in
# the user's cache folder. Only this variable, set before it is loaded, prevents all of it: when its Python interface
# can be called the first event is on its way.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime  # after its telemetry has been switched off

_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": np.float32,
        "double": np.float64,
        "float16": np.float16,
        "bool": np.bool_,
        "int8": np.int8,
        "int16": np.int16,
        "int32": np.int32,
        "int64": np.int64,
        "uint8": np.uint8,
        "uint16": np.uint16,
        "uint32": np.uint32,
        "uint64": np.uint64,
    }.items()
}
"""onnxruntime's names of element types."""

_SILENT = 4
"""onnxruntime's log level that lets only fatal messages through: what goes wrong is raised, and said once."""

_UNFAITHFUL = ("DoubleQDQPairsRemover",)
"""Optimisations up to ORT_ENABLE_BASIC that change answers: of two Q/DQ pairs in a row one is taken out and the
other gets a new scale (47 dB from the model as it is, seen in 1.32)."""

# For a process that had loaded onnxruntime before.
onnxruntime.disable_telemetry_events()


class ReferenceSession:
    """An ONNX model in onnxruntime, any of whose tensors can be read.

    Graph optimisation stops at ORT_ENABLE_BASIC: folding, and the removal of nodes that do nothing. The
    higher levels fuse nodes: ORT_ENABLE_ALL drops a ReLU in front of an FP8 quantizer (seen in 1.32), and the
    reference has to be what the ONNX standard says rather than fast. Whoever only counts what activations of a
    floating model reach may have them.
    """

    def __init__(
        self,
        model: bytes | Path | onnx.ModelProto,
        *,
        outputs: Sequence[str] | None = None,
        threads: int,
        fused: bool = False,
    ) -> None:
        """Loads `model`.

        Args:
            model: a model, also serialized, or its file as `engines.model.model.save_model` writes it.
            outputs: names of the tensors that `run` returns: outputs, inputs, or anything in between. None
                means the model's outputs.
            threads: processors that a run may use.
            fused: whether nodes are fused and convolutions laid out by blocks of channels. Only for models without
                quantizers; a run of a convolutional network then takes an eighth less, and last digits differ.

        Raises:
            CompileError: onnxruntime does not take the model, or a tensor of `outputs` is not in it.
        """
        with (
            _translated(CompileError, "onnxruntime cannot load the model"),
            _loadable(model, outputs) as source,
        ):
            self._session = onnxruntime.InferenceSession(
                source,
                _options(threads, fused=fused),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(_UNFAITHFUL),
            )
            self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
            all_outputs = tuple(_spec(node) for node in self._session.get_outputs())
        wanted = tuple(spec.name for spec in all_outputs) if outputs is None else tuple(outputs)
        self.outputs = tuple(spec for spec in all_outputs if spec.name in set(wanted))
        self._wanted = wanted
        given = {spec.name for spec in self.inputs}
        self._fetched = [name for name in wanted if name not in given]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch and returns the tensors asked for, by name, in arrays that the caller owns.

        Raises:
            EngineRunError: an input is missing or does not fit, or a node failed; the message names it.
        """
        check_feeds(feeds, self.inputs)
        with _translated(EngineRunError, "onnxruntime failed on this batch"):
            # An empty list would mean all outputs.
            values = self._session.run(self._fetched, dict(feeds)) if self._fetched else []
        found = dict(zip(self._fetched, values, strict=True))
        return {name: found[name] if name in found else feeds[name].copy() for name in self._wanted}


class ReferenceRuntime(Runtime):
    """onnxruntime behind the contract of every runtime."""

    name = "onnxruntime"
    takes_asymmetric = True

    def hardware_key(self) -> str:
        """The library's version; it compiles nothing that is kept."""
        return f"onnxruntime-{onnxruntime.__version__}"

    def weight_bits(self) -> int:
        """8: symmetric Q/DQ runs in floating point here, where nothing saturates."""
        return 8

    def emulates(self, precision: Precision) -> bool:
        """Every 8-bit type: what quantizers leave is computed in floating point."""
        return precision is not Precision.FP32

    def compile(
        self,
        model: Path,
        *,
        threads: int,
        cache: Path | None = None,  # noqa: ARG002 # nothing to keep
        progress: Callable[[float], None] | None = None,  # noqa: ARG002 # nothing to tell of
    ) -> Engine:
        return _ReferenceEngine(ReferenceSession(model, threads=threads))


class _ReferenceEngine(PooledEngine):
    def __init__(self, session: ReferenceSession) -> None:
        super().__init__(session.inputs, session.outputs)
        self._session = session

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        buffers = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self.inputs}
        return _ReferenceSlot(self._session, buffers)


class _ReferenceSlot:
    def __init__(self, session: ReferenceSession, inputs: Mapping[str, Array]) -> None:
        self._session = session
        self.inputs = inputs

    def run(self) -> Mapping[str, Array]:
        return self._session.run(self.inputs)


def _options(threads: int, *, fused: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Else floating weights and biases between Q/DQ pairs get quantized too: 41 dB from the model as it is were seen.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Threads that wait actively would take the processors from whoever shares the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _SILENT
    return options


@contextlib.contextmanager
def _loadable(model: bytes | Path | onnx.ModelProto, outputs: Sequence[str] | None) -> Iterator[bytes | str]:
    """The model with `outputs` as onnxruntime loads it: its bytes, or where it is too large for that, a file."""
    if isinstance(model, Path):
        content = model.read_bytes()
        if weights_path(model).is_file():
            with written_beside(weights_path(model), _tap(content, outputs)) as path:
                yield str(path)
            return
    elif isinstance(model, onnx.ModelProto):
        if is_large(model):
            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "model.onnx"
                write_model(model, written)
                written.write_bytes(_tap(written.read_bytes(), outputs))
                yield str(written)
            return
        content = model.SerializeToString()
    else:
        content = model
    yield _tap(content, outputs)


def _tap(model: bytes, outputs: Sequence[str] | None) -> bytes:
    """The model with every tensor of `outputs` among its outputs, other outputs left out; None keeps it as it is."""
    if outputs is None:
        return model
    proto = onnx.load_model_from_string(model)
    given = {value.name for value in proto.graph.input}
    made = {name for node in proto.graph.node for name in node.output if name}
    made.update(tensor.name for tensor in proto.graph.initializer)
    missing = [name for name in outputs if name not in given | made]
    if missing:
        raise CompileError(f"the model has no tensor {missing[0]!r} to observe.")
    known = {value.name: value for value in proto.graph.output}
    # onnxruntime infers the type of an output that only has a name.
    taps = [known.get(name, onnx.ValueInfoProto(name=name)) for name in outputs if name not in given]
    if not taps:
        return model
    del proto.graph.output[:]
    proto.graph.output.extend(taps)
    tapped: bytes = proto.SerializeToString()
    return tapped


def convert_to_half(model: onnx.ModelProto, single: Collection[str]) -> onnx.ModelProto:
    """`model`, consumed, in 16-bit floats but for its inputs, its outputs and the nodes named in `single`.

    Types of all tensors must be known. Nodes are not in order afterwards.
    """
    from onnxruntime.transformers import float16  # noqa: PLC0415 # few processes need it

    converted: onnx.ModelProto = float16.convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=list(single)
    )
    return converted


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise CompileError(
            f"tensor {node.name!r} has the element type {node.type}, which octet does not take; "
            "use a number or bool."
        )
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES[node.type], shape=shape)


@contextlib.contextmanager
def _translated(kind: type[CompileError | EngineRunError], problem: str) -> Iterator[None]:
    """Raises whatever onnxruntime raises as `kind`, in one sentence."""
    try:
        yield
    except kind:
        raise
    except Exception as error:  # its exceptions have no base of their own
        raise kind(f"{problem}{_explain(str(error))}.") from error


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(r"while running (\w+) node\. Name:'(.*?)' Status Message: (.*)", re.DOTALL)
_SOURCE = re.compile(r"^.*?\S+\.(?:h|cc|hpp|cpp):\d+ .*? was false\. ", re.DOTALL)
_LONGEST = 300


def _explain(text: str) -> str:
    """What onnxruntime says, without its codes and source lines: `: node 'x' (Conv): the problem`."""
    text = _PREFIX.sub("", text)
    where = ""
    if node := _NODE.search(text):
        where = f": node {node[2]!r} ({node[1]})"
        text = node[3]
    text = " ".join(_SOURCE.sub("", text).split()).rstrip(". ")
    return f"{where}: {text[:_LONGEST]}"
