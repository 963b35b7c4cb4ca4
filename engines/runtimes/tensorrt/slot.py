"""The buffers of one batch in pinned memory and on the GPU, and the work that connects them."""

import logging
import math
from collections.abc import Mapping

from engines.errors import EngineRunError
from engines.model.tensors import Array
from engines.runtimes.cuda import DeviceBuffer, Graph, Scope, translated
from engines.runtimes.tensorrt.lane import Lane
from engines.runtimes.tensorrt.preparation import PreparedModel

logger = logging.getLogger(__name__)


class TensorRTSlot:
    """A batch is one sequence of work in its lane's stream: copy in, compute, copy out.

    After a first run, which settles what TensorRT does lazily, the sequence is captured as a CUDA graph, so that a
    batch costs one launch.
    """

    def __init__(
        self, lane: Lane, model: PreparedModel, tensors: frozenset[str], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Allocates. The lane must be held, and the CUDA context current.

        Args:
            lane: where it runs.
            model: as it was compiled.
            tensors: names of the engine's inputs and outputs.
            shapes: of all inputs.

        Raises:
            EngineRunError: the shapes do not fit together, or there is no memory.
        """
        self.shapes = dict(shapes)
        self._lane = lane
        self._scope = scope = Scope(lane.device)
        self._graph: Graph | None = None
        lane.messages.clear()
        try:
            self.inputs: Mapping[str, Array] = {
                spec.name: scope.pinned(shapes[spec.name], spec.dtype) for spec in model.inputs
            }
            # An input that nothing reads may not be in the engine.
            self._device_inputs = {
                name: scope.device_buffer(array.nbytes)
                for name, array in self.inputs.items()
                if name in tensors
            }
            self._set_shapes()
            self._outputs, self._device_outputs = self._allocate_outputs(model)
        except BaseException:
            scope.close()
            raise

    def run(self) -> Mapping[str, Array]:
        """See `engines.runtimes.base.Slot`."""
        lane = self._lane
        with lane.lock, lane.device.active(), translated("the GPU failed on this batch"):
            if self._graph is not None:
                self._graph.launch()
                lane.stream.synchronize()
                return self._outputs
            lane.messages.clear()
            self._bind()
            try:
                self._enqueue()
            finally:
                # Copies that were begun must not outlive the buffers.
                lane.stream.synchronize()
            if lane.captures:
                self._capture()
        return self._outputs

    def close(self) -> None:
        """Frees its memory. Idempotent."""
        with self._lane.lock:
            self._scope.close()

    def _set_shapes(self) -> None:
        context = self._lane.context
        for name in self._device_inputs:
            if not context.set_input_shape(name, self.shapes[name]):
                raise self._lane.refusal()

    def _allocate_outputs(self, model: PreparedModel) -> tuple[dict[str, Array], dict[str, DeviceBuffer]]:
        context = self._lane.context
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._lane.refusal() from error
        if missing:
            raise EngineRunError(f"TensorRT cannot tell the shape of {missing[0]!r} in this batch.")
        arrays: dict[str, Array] = {}
        buffers: dict[str, DeviceBuffer] = {}
        for spec in model.outputs:
            if spec.name in model.passed:
                arrays[spec.name] = self.inputs[spec.name]
                continue
            shape = tuple(context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise EngineRunError(
                    f"the shape of output {spec.name!r} depends on the values of the inputs, which octet does not run "
                    "on TensorRT; build the model with the runtime openvino."
                )
            arrays[spec.name] = self._scope.pinned(shape, spec.dtype)
            buffers[spec.name] = self._scope.device_buffer(math.prod(shape) * spec.dtype.itemsize)
        return arrays, buffers

    def _bind(self) -> None:
        """Has the context work on this slot's buffers; the lane's other slots use it, too."""
        self._set_shapes()
        for name, buffer in (*self._device_inputs.items(), *self._device_outputs.items()):
            if not self._lane.context.set_tensor_address(name, buffer.address):
                raise self._lane.refusal()

    def _enqueue(self) -> None:
        stream = self._lane.stream
        for name, buffer in self._device_inputs.items():
            stream.copy_in(buffer, self.inputs[name])
        if not self._lane.context.execute_async_v3(stream.handle):
            raise self._lane.refusal()
        for name, buffer in self._device_outputs.items():
            stream.copy_out(self._outputs[name], buffer)

    def _capture(self) -> None:
        """Captures the batch that has just run; where that fails, batches go on without graphs."""
        try:
            self._graph = self._scope.graph(self._lane.stream, self._enqueue)
        except EngineRunError as error:
            self._lane.captures = False
            # Its text alone: the error holds frames, and they the stream, beyond the engine's end.
            logger.warning("batches run without CUDA graphs: %s", str(error))
