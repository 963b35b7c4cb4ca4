"""TensorRT behind the contract of every runtime."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.errors import CompileError, EngineRunError, InvalidOptionsError
from engines.options import Precision
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.cuda import CudaDevice, default_device, driver_version
from engines.runtimes.tensorrt.building import OPTIMIZATION_LEVEL, WORKSPACE_BYTES, Blueprint, build_plan
from engines.runtimes.tensorrt.engine import PlanRefusedError, TensorRTEngine
from engines.runtimes.tensorrt.library import Messages, version
from engines.runtimes.tensorrt.plans import plan_cache
from engines.runtimes.tensorrt.preparation import PreparedModel, prepare
from engines.runtimes.tensorrt.profiles import ShapeLimits, ShapeRange, shape_ranges

_FP8_FROM = (8, 9)
"""The compute capability from which on GPUs have FP8: Ada."""


class TensorRTRuntime(Runtime):
    """The first GPU that the process sees."""

    name = "tensorrt"
    halves_rest = True
    caveat = (
        "octet's TensorRT runtime was not run on hardware by us: it is checked against NVIDIA's bindings and a "
        "simulated GPU. What serves has reproduced its proof on this GPU."
    )

    def __init__(self, limits: ShapeLimits | None = None) -> None:
        """Starts CUDA.

        Raises:
            EngineRunError: it cannot be started.
        """
        self._limits = limits or ShapeLimits()
        self._device: CudaDevice = default_device()

    def hardware_key(self) -> str:
        """TensorRT's version, the GPU, its compute capability, the driver's CUDA, and how octet has plans built.

        The GPU's name is in it because kernels are chosen by timing them: GPUs of one compute capability differ in
        clocks and multiprocessors, and TensorRT warns where a plan comes from another.
        """
        major, minor = self._device.compute_capability
        cuda = driver_version()
        key = (
            f"tensorrt-{'.'.join(map(str, version()[:3]))}-sm{major}{minor}-{self._device.name}"
            f"-cuda{cuda // 1000}.{cuda % 1000 // 10}-o{OPTIMIZATION_LEVEL}"
        )
        return re.sub(r"[^a-z0-9._-]+", "_", key.lower())

    def weight_bits(self) -> int:
        """8: sums are 32-bit."""
        return 8

    def emulates(self, precision: Precision) -> bool:  # noqa: ARG002 # no type is
        """None: where a GPU lacks FP8, TensorRT refuses to compile."""
        return False

    def compile(
        self,
        model: Path,
        *,
        threads: int,  # noqa: ARG002 # the GPU computes
        cache: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        prepared = prepare(model)
        try:
            ranges = shape_ranges(prepared.inputs, self._limits)
        except InvalidOptionsError as error:
            raise CompileError(str(error)) from error
        self._check_fp8(prepared)
        plans = None if cache is None else plan_cache(cache, self.hardware_key())
        key, messages = _digest(prepared, ranges), Messages()
        # Reading the weights of a large model into a digest costs as much as it saves.
        kept = None if plans is None or prepared.beside else plans.get(key)
        if kept is not None:
            try:
                return TensorRTEngine(kept, prepared, ranges, self._device, messages)
            except PlanRefusedError:
                messages.clear()
        blueprint = Blueprint(model=prepared.content, beside=prepared.beside, ranges=ranges)
        try:
            with self._device.active():
                plan = build_plan(blueprint, messages, timings=plans, progress=progress)
        except EngineRunError as error:
            raise CompileError(f"TensorRT cannot compile the model: {error}") from error
        engine = TensorRTEngine(plan, prepared, ranges, self._device, messages)
        if plans is not None and not prepared.beside:
            plans.put(key, plan)
        return engine

    def _check_fp8(self, prepared: PreparedModel) -> None:
        if prepared.has_fp8 and self._device.compute_capability < _FP8_FROM:
            major, minor = self._device.compute_capability
            raise CompileError(
                f"{self._device.name} has the compute capability {major}.{minor}, and FP8 begins with 8.9; build the "
                "model with the precision int8."
            )


def _digest(prepared: PreparedModel, ranges: Mapping[str, ShapeRange]) -> str:
    """What a plan is kept under, beside the hardware key: the artifact and how it is compiled."""
    digest = hashlib.sha256(repr((WORKSPACE_BYTES, sorted(ranges.items()))).encode())
    digest.update(prepared.content)
    return digest.hexdigest()
