"""An execution context and the stream that it works in."""

import threading

from engines.errors import CompileError, EngineRunError
from engines.runtimes.cuda import CudaDevice, Scope, can_capture
from engines.runtimes.tensorrt.library import Messages, trt


class Lane:
    """Where batches run one after another, while another lane of the same engine runs its own."""

    def __init__(self, engine: trt.ICudaEngine, device: CudaDevice, scope: Scope, messages: Messages) -> None:
        """Sets a context up, with the engine's first profile. The CUDA context must be current.

        Raises:
            CompileError: there is no memory for it.
        """
        self.device = device
        self.stream = scope.stream()
        # Held by whoever uses the context or the stream.
        self.lock = threading.Lock()
        self.messages = messages
        # Graphs are not tried again after the first failure.
        self.captures = can_capture()
        messages.clear()
        context = engine.create_execution_context()
        if context is None:
            raise CompileError(f"TensorRT cannot set the engine up: {messages.explain()}.")
        self._context: trt.IExecutionContext | None = context
        scope.defer(self._end)
        # Only the first context of an engine begins with a profile.
        if not context.set_optimization_profile_async(0, self.stream.handle):
            raise CompileError(f"TensorRT cannot set the engine up: {messages.explain()}.")
        self.stream.synchronize()

    @property
    def context(self) -> trt.IExecutionContext:
        """TensorRT's object.

        Raises:
            EngineRunError: the lane has ended.
        """
        if self._context is None:
            raise EngineRunError("the engine is closed; load the version again.")
        return self._context

    def refusal(self) -> EngineRunError:
        """The error that says what TensorRT has just said of this batch."""
        return EngineRunError(f"TensorRT cannot run this batch: {self.messages.explain()}.")

    def _end(self) -> None:
        # TensorRT frees a context with its object.
        self._context = None
