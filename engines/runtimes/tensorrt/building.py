"""From an ONNX file to a plan: parse, limit, time kernels, choose."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.errors import CompileError
from engines.runtimes.engine_cache import EngineCache
from engines.runtimes.tensorrt.library import Messages, explain, trt, version
from engines.runtimes.tensorrt.profiles import ShapeRange
from engines.runtimes.tensorrt.progress import BuildProgress

WORKSPACE_BYTES = 4 << 30
"""Scratch memory that a kernel may ask for. More rarely wins speed; what is not used is not taken."""
OPTIMIZATION_LEVEL = 3
"""TensorRT's own default, of 0 to 5: above it builds take several times as long for a few percent."""
_TIMINGS = "timings"
"""Under which the timing cache is kept."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a plan is built from."""

    # The ONNX file as it is compiled.
    model: bytes
    # Where its external data is looked for; None where it has none.
    beside: Path | None
    ranges: Mapping[str, ShapeRange]


def build_plan(
    blueprint: Blueprint,
    messages: Messages,
    *,
    timings: EngineCache | None,
    progress: Callable[[float], None] | None = None,
) -> bytes:
    """Has TensorRT compile a model. The CUDA context must be current.

    What `progress` raises ends the build and is raised again.

    Raises:
        CompileError: TensorRT does not take the model, or finds no way to run it.
    """
    messages.clear()
    builder = trt.Builder(messages)
    network = builder.create_network(_network_flags())
    _parse(blueprint, network, messages)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    # The inspector then tells types of layers.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # FP32 means FP32: TF32 keeps 10 bits of 23, and the proof compares with FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, config, blueprint.ranges)
    cache = config.create_timing_cache((timings.get(_TIMINGS) if timings else None) or b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    monitor = BuildProgress(progress) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None:
        monitor.check()
    if plan is None:
        raise CompileError(f"TensorRT cannot compile the model: {messages.explain()}.")
    if timings is not None:
        _keep_timings(config, timings)
    return bytes(memoryview(plan))


def _network_flags() -> int:
    """Types are those of the graph. From 11 on there is no other kind, and asking for it is deprecated."""
    return 0 if version()[0] >= 11 else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(blueprint: Blueprint, network: trt.INetworkDefinition, messages: Messages) -> None:
    parser = trt.OnnxParser(network, messages)
    beside = blueprint.beside
    taken = parser.parse(blueprint.model, str(beside)) if beside else parser.parse(blueprint.model)
    if taken:
        return
    if parser.num_errors == 0:
        raise CompileError(f"TensorRT cannot read the model: {messages.explain()}.")
    error = parser.get_error(0)
    node = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the model"
    raise CompileError(
        f"TensorRT does not take {node}: {explain(error.desc())}. Export the model with other operators, or build it "
        "with the runtime openvino."
    )


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, ranges: Mapping[str, ShapeRange]) -> None:
    free = {name: shapes for name, shapes in ranges.items() if shapes.least != shapes.largest}
    if not free:
        return
    profile = builder.create_optimization_profile()
    for name, shapes in free.items():
        profile.set_shape(name, min=shapes.least, opt=shapes.usual, max=shapes.largest)
    config.add_optimization_profile(profile)


def _keep_timings(config: trt.IBuilderConfig, timings: EngineCache) -> None:
    """Keeps what was measured, together with what other processes have kept meanwhile."""
    cache = config.get_timing_cache()
    if kept := timings.get(_TIMINGS):
        cache.combine(config.create_timing_cache(kept), ignore_mismatch=False)
    timings.put(_TIMINGS, bytes(memoryview(cache.serialize())))
