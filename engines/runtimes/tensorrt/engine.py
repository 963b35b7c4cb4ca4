"""A plan that serves: two execution contexts, and slots that share them."""

from collections.abc import Mapping

import numpy as np

from engines.errors import CompileError, EngineRunError
from engines.runtimes.base import Slot
from engines.runtimes.cuda import CudaDevice, OutOfDeviceMemoryError, Scope
from engines.runtimes.slots import PooledEngine
from engines.runtimes.tensorrt.inspection import read_layers
from engines.runtimes.tensorrt.lane import Lane
from engines.runtimes.tensorrt.library import Messages, trt
from engines.runtimes.tensorrt.preparation import PreparedModel
from engines.runtimes.tensorrt.profiles import ShapeRange
from engines.runtimes.tensorrt.slot import TensorRTSlot

LANES = 2
"""Two let the copies of one batch overlap the computing of another; a third only waits, and costs as much memory."""
_DTYPES = {
    trt.DataType.BOOL: np.dtype(np.bool_),
    trt.DataType.HALF: np.dtype(np.float16),
    trt.DataType.FLOAT: np.dtype(np.float32),
    trt.DataType.INT8: np.dtype(np.int8),
    trt.DataType.INT32: np.dtype(np.int32),
    trt.DataType.INT64: np.dtype(np.int64),
    trt.DataType.UINT8: np.dtype(np.uint8),
}


class PlanRefusedError(CompileError):
    """A stored plan is of another GPU, driver or TensorRT; it is compiled again from the artifact."""


class TensorRTEngine(PooledEngine):
    """A deserialized plan. Its GPU memory is freed by `close`, in order, whoever holds slots."""

    on_gpu = True

    def __init__(
        self,
        plan: bytes,
        model: PreparedModel,
        ranges: Mapping[str, ShapeRange],
        device: CudaDevice,
        messages: Messages,
    ) -> None:
        """Puts a plan on the GPU.

        Raises:
            PlanRefusedError: TensorRT does not take the plan here.
            CompileError: the engine cannot run as octet runs engines, or there is no memory for it.
        """
        super().__init__(model.inputs, model.outputs)
        self._model = model
        self._ranges = ranges
        self._device = device
        self._made: set[TensorRTSlot] = set()
        self._scope = Scope(device)
        try:
            with device.active():
                self._load(plan, messages)
        except EngineRunError as error:
            self._scope.close()
            raise CompileError(f"TensorRT cannot set the engine up: {error}") from error
        except BaseException:
            self._scope.close()
            raise

    def _load(self, plan: bytes, messages: Messages) -> None:
        messages.clear()
        self._runtime: trt.Runtime | None = trt.Runtime(messages)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise PlanRefusedError(f"TensorRT does not take the stored plan: {messages.explain()}.")
        self._engine: trt.ICudaEngine | None = engine
        self._scope.defer(self._forget)
        self._tensors = _checked_tensors(engine, self._model)
        self._lanes = tuple(Lane(engine, self._device, self._scope, messages) for _ in range(LANES))
        description = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        self.layers = read_layers(description, self._model.quantizers)

    def _new_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> Slot:
        for name, shape in shapes.items():
            if not self._ranges[name].contains(shape):
                raise EngineRunError(
                    f"input {name!r} has the shape {list(shape)}; this engine was compiled for "
                    f"{self._ranges[name].describe()}: build the model again with another 'profile'."
                )
        try:
            return self._made_slot(shapes)
        except OutOfDeviceMemoryError:
            # What idle batches hold is enough more often than not.
            if not self._drop_idle():
                raise
        return self._made_slot(shapes)

    def _made_slot(self, shapes: Mapping[str, tuple[int, ...]]) -> TensorRTSlot:
        with self._lock:
            # Batches of one shape that follow each other get different lanes.
            alike = sum(slot.shapes == shapes for slot in self._made)
        lane = self._lanes[alike % len(self._lanes)]
        with lane.lock, self._device.active():
            slot = TensorRTSlot(lane, self._model, self._tensors, shapes)
        with self._lock:
            self._made.add(slot)
        return slot

    def _discard(self, slot: Slot) -> None:
        with self._lock:
            dropped = [made for made in self._made if made is slot]
            self._made.difference_update(dropped)
        for made in dropped:
            made.close()

    def close(self) -> None:
        super().close()
        with self._lock:
            made, self._made = self._made, set()
        for slot in made:
            slot.close()
        self._scope.close()

    def _forget(self) -> None:
        # TensorRT frees an engine with its object, and wants the runtime to outlive it.
        self._engine = None
        self._runtime = None


def _checked_tensors(engine: trt.ICudaEngine, model: PreparedModel) -> frozenset[str]:
    """Names of the engine's inputs and outputs.

    Raises:
        CompileError: one is missing, of another type than the model's, or lies in the processor's memory.
    """
    dtypes = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            raise CompileError(
                f"tensor {name!r} holds a shape, which TensorRT reads from the processor's memory; make it a constant "
                "of the model."
            )
        found = engine.get_tensor_dtype(name)
        if name not in dtypes or _DTYPES.get(found) != dtypes[name]:
            wanted = f"of {dtypes[name].name}" if name in dtypes else "not there"
            raise CompileError(
                f"TensorRT has a tensor {name!r} of {found}, which in the model is {wanted}; cast it in the model."
            )
    for spec in model.outputs:
        if spec.name not in names and spec.name not in model.passed:
            raise CompileError(
                f"TensorRT has left out the output {spec.name!r}; build it with the runtime openvino."
            )
    return frozenset(names)
