"""Our TensorRT runtime on the strict fakes: what it keeps, what it frees, what it says where something fails."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.errors import CompileError, EngineRunError
from engines.model.external_weights import weights_path
from engines.options import ShapeProfile
from engines.runtimes.base import Engine
from engines.runtimes.tensorrt.profiles import ShapeLimits
from tests.fakes import gpu, installed
from tests.unit.engines.onnx_graphs import conv_net, mlp, vector_rows

SHAPES = {"vector": (2, 12)}


@pytest.fixture
def machine() -> Iterator[None]:
    """A GPU on which nothing may be left behind."""
    with installed():
        yield


def compiled(
    folder: Path, model: onnx.ModelProto | None = None, *, limits: ShapeLimits | None = None, **given: Any
) -> Engine:
    from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

    path = folder / "model.onnx"
    path.write_bytes((model or mlp()).SerializeToString())
    return TensorRTRuntime(limits).compile(path, threads=1, **given)


@pytest.mark.usefixtures("machine")
class TestGraphs:
    def test_a_batch_is_captured_after_its_first_run_and_launched_from_then_on(self, tmp_path: Path) -> None:
        with compiled(tmp_path) as engine:
            slot = engine.slot(SHAPES)
            assert not gpu.the.executables
            answers = []
            for value in (1, 2, 3):
                slot.inputs["vector"][...] = value
                answers.append(slot.run()["scores"].copy())
                assert len(gpu.the.executables) == 1
            assert not gpu.the.graphs, "the captured graph is of no use once it is instantiated"
            assert not np.array_equal(answers[1], answers[2])
            engine.slot(SHAPES).run()
            assert len(gpu.the.executables) == 2

    def test_without_cuda_bindings_batches_are_enqueued_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.import_module("engines.runtimes.cuda"), "graphs", None)
        with compiled(tmp_path) as engine:
            assert [engine.run({"vector": vector_rows(2)})["scores"].shape for _ in range(3)] == [(2, 4)] * 3
            assert not gpu.the.executables

    def test_work_that_cannot_be_captured_costs_no_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from pycuda import driver  # noqa: PLC0415 # the fake

        copy = driver.memcpy_dtoh_async

        def refuse(dest: Any, src: int, stream: Any) -> None:
            if gpu.the.stream(stream.handle).capturing is not None:
                raise driver.LogicError(
                    "cuMemcpyDtoHAsync failed: operation not permitted when stream is capturing"
                )
            copy(dest, src, stream)

        monkeypatch.setattr(driver, "memcpy_dtoh_async", refuse)
        with compiled(tmp_path) as engine:
            for _ in range(3):
                assert engine.run({"vector": vector_rows(2)})["scores"].shape == (2, 4)
            assert not gpu.the.graphs
        assert "operation not permitted when stream is capturing" in caplog.messages[0]

    def test_an_engine_that_cannot_be_captured_runs_without_and_says_so_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from cuda.bindings import driver  # noqa: PLC0415 # the fake

        monkeypatch.setattr(
            driver,
            "cuGraphInstantiate",
            lambda graph, flags: (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None),
        )
        with compiled(tmp_path) as engine:
            slot = engine.slot(SHAPES)
            for _ in range(3):
                slot.inputs["vector"][...] = 1
                assert slot.run()["scores"].shape == (2, 4)
            assert not gpu.the.graphs
        assert len(caplog.messages) == 1
        assert "without CUDA graphs" in caplog.messages[0]


@pytest.mark.usefixtures("machine")
def test_batches_of_one_shape_that_follow_each_other_run_in_different_lanes(tmp_path: Path) -> None:
    with compiled(tmp_path) as engine:
        assert engine.on_gpu
        slots: list[Any] = [engine.slot(SHAPES) for _ in range(4)]
        streams = [slot._lane.stream.handle for slot in slots]
        assert streams[0] != streams[1]
        assert streams[:2] == streams[2:]


@pytest.mark.usefixtures("machine")
class TestMemory:
    def test_closing_frees_slots_that_are_held_and_kept(self, tmp_path: Path) -> None:
        engine = compiled(tmp_path)
        held, kept = engine.slot(SHAPES), engine.slot(SHAPES)
        held.run()
        engine.release(kept)
        assert len(gpu.the.pinned) == 4
        engine.close()
        engine.close()
        gpu.the.check_leaks()
        with pytest.raises(EngineRunError, match="closed"):
            engine.slot(SHAPES)

    def test_another_thread_may_run_and_close_what_this_one_made(self, tmp_path: Path) -> None:
        engine = compiled(tmp_path)
        slot = engine.slot(SHAPES)

        def work() -> None:
            slot.inputs["vector"][...] = 1
            slot.run()
            engine.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        gpu.the.check_leaks()

    def test_a_batch_too_large_for_the_gpu_is_said_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with compiled(tmp_path, limits=ShapeLimits(max_rows=4096)) as engine:
            used = len(gpu.the.device), len(gpu.the.pinned)
            monkeypatch.setattr(gpu.the, "settings", gpu.Settings(memory_bytes="4096"))
            with pytest.raises(
                EngineRunError,
                match=r"the GPU is out of memory \(0 of 0 MiB are free\); lower max_batch_rows",
            ):
                engine.slot({"vector": (4096, 12)})
            assert (len(gpu.the.device), len(gpu.the.pinned)) == used
            assert engine.run({"vector": vector_rows(2)})["scores"].shape == (2, 4)

    def test_a_gpu_without_room_for_the_engine_is_a_compile_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu.the, "settings", gpu.Settings(memory_bytes="512"))
        with pytest.raises(
            CompileError, match=r"TensorRT cannot set the engine up: OutOfMemory \(no memory\)\."
        ):
            compiled(tmp_path)
        gpu.the.check_leaks()

    def test_memory_that_idle_batches_hold_is_given_to_the_one_that_needs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with compiled(tmp_path) as engine:
            for rows in (8, 16, 24):
                engine.run({"vector": vector_rows(rows)})
            monkeypatch.setattr(
                gpu.the, "settings", gpu.Settings(memory_bytes=str(gpu.the.used_bytes() + 64))
            )
            assert engine.run({"vector": vector_rows(32)})["scores"].shape == (32, 4)


@pytest.mark.usefixtures("machine")
class TestPlans:
    def test_a_kept_plan_is_used_again_and_timings_are_merged(self, tmp_path: Path) -> None:
        from engines.runtimes.tensorrt.plans import plan_cache  # noqa: PLC0415 # of the machine that is played
        from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

        told: list[float] = []
        for model in (mlp(), mlp(), conv_net()):
            compiled(tmp_path, model, cache=tmp_path / "cache", progress=told.append).close()
        assert told.count(1.0) == 2, "the second model was not built again"
        key = TensorRTRuntime().hardware_key()
        cache = plan_cache(tmp_path / "cache", key)
        assert cache is not None
        timings = cache.get("timings")
        assert timings is not None
        assert b"Conv" in timings
        assert b"Gemm" in timings or b"MatMul" in timings
        assert len(list((tmp_path / "cache" / key).glob("*.engine"))) == 3

    def test_another_model_of_the_same_shapes_gets_a_plan_of_its_own(self, tmp_path: Path) -> None:
        answers = []
        for seed in (1, 2):
            with compiled(tmp_path, mlp(seed=seed), cache=tmp_path / "cache") as engine:
                answers.append(engine.run({"vector": vector_rows(2)})["scores"])
        assert not np.array_equal(answers[0], answers[1])

    def test_timings_that_another_build_keeps_meanwhile_are_not_lost(self, tmp_path: Path) -> None:
        from engines.runtimes.tensorrt.plans import plan_cache  # noqa: PLC0415 # of the machine that is played
        from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

        cache = plan_cache(tmp_path / "cache", TensorRTRuntime().hardware_key())
        assert cache is not None
        compiled(
            tmp_path, cache=tmp_path / "cache", progress=lambda _: cache.put("timings", b'["LSTM"]')
        ).close()
        assert b"LSTM" in (cache.get("timings") or b"")

    def test_a_plan_that_tensorrt_refuses_is_compiled_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

        monkeypatch.setattr(TensorRTRuntime, "hardware_key", lambda _: "the-same")
        told: list[float] = []
        for name in ("NVIDIA L4", "NVIDIA L40S", "NVIDIA L40S"):
            monkeypatch.setattr(gpu.the, "settings", gpu.Settings(gpu_name=name))
            with compiled(tmp_path, cache=tmp_path / "cache", progress=told.append) as engine:
                assert engine.run({"vector": vector_rows(2)})["scores"].shape == (2, 4)
        assert told.count(1.0) == 2

    def test_what_was_never_written_by_us_is_never_given_to_tensorrt(self, tmp_path: Path) -> None:
        compiled(tmp_path, cache=tmp_path / "cache").close()
        for path in (tmp_path / "cache").rglob("*.engine"):
            path.write_bytes(bytes(32) + b"native code")
        compiled(tmp_path, cache=tmp_path / "cache").close()

    def test_other_shapes_get_a_plan_of_their_own(self, tmp_path: Path) -> None:
        for rows in (4, 64):
            compiled(tmp_path, cache=tmp_path / "cache", limits=ShapeLimits(max_rows=rows)).close()
        assert len(list((tmp_path / "cache").rglob("[0-9a-f]*.engine"))) == 2

    def test_a_build_that_is_cancelled_ends_with_what_cancelled_it(self, tmp_path: Path) -> None:
        def cancel(share: float) -> None:
            if share >= 0.5:
                raise InterruptedError("enough")

        with pytest.raises(InterruptedError, match="enough"):
            compiled(tmp_path, progress=cancel)


@pytest.mark.usefixtures("machine")
def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

    path, model = tmp_path / "model.onnx", mlp()
    with compiled(tmp_path, mlp()) as engine:
        expected = engine.run({"vector": vector_rows(2)})["scores"]
    onnx.save(model, path, save_as_external_data=True, location=weights_path(path).name, size_threshold=0)
    with TensorRTRuntime().compile(path, threads=1, cache=tmp_path / "cache") as engine:
        np.testing.assert_array_equal(engine.run({"vector": vector_rows(2)})["scores"], expected)
    assert not list((tmp_path / "cache").rglob("[0-9a-f]*.engine")), "plans of large models are not kept"


@pytest.mark.usefixtures("machine")
class TestRefusals:
    def test_shapes_outside_of_the_profile_name_it(self, tmp_path: Path) -> None:
        profile = {"vector": ShapeProfile(min=(2, 12), opt=(2, 12), max=(4, 12))}
        with compiled(tmp_path, limits=ShapeLimits(profile=profile)) as engine:
            assert engine.run({"vector": vector_rows(4)})["scores"].shape == (4, 4)
            with pytest.raises(
                EngineRunError,
                match=r"shape \[5, 12\]; this engine was compiled for \[2 to 4, 12\]: .*'profile'",
            ):
                engine.run({"vector": vector_rows(5)})

    def test_a_profile_that_does_not_fit_is_a_compile_error(self, tmp_path: Path) -> None:
        profile = {"image": ShapeProfile(min=(1,), opt=(1,), max=(1,))}
        with pytest.raises(CompileError, match="names the input 'image'"):
            compiled(tmp_path, limits=ShapeLimits(profile=profile))

    def test_types_that_tensorrt_does_not_have_are_named(self, tmp_path: Path) -> None:
        double = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, ["n", 2])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, ["n", 2])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [double], [out])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        with pytest.raises(
            CompileError, match="tensor 'x' has the element type float64, which TensorRT does not"
        ):
            compiled(tmp_path, model)

    def test_fp8_on_a_gpu_without_it_names_the_precision_to_build_with(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = mlp()
        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
        model.graph.initializer.append(zero)
        monkeypatch.setattr(gpu.the, "settings", gpu.Settings(gpu_name="NVIDIA A10", capability="8.6"))
        with pytest.raises(
            CompileError, match=r"NVIDIA A10 has the compute capability 8\.6, .* precision int8"
        ):
            compiled(tmp_path, model)

    def test_a_gpu_that_fails_in_a_batch_is_an_error_of_that_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pycuda import driver  # noqa: PLC0415 # the fake

        with compiled(tmp_path) as engine:
            engine.run({"vector": vector_rows(2)})
            synchronize = driver.Stream.synchronize

            def fail(stream: Any) -> None:
                synchronize(stream)
                raise driver.LogicError(
                    "cuStreamSynchronize failed: an illegal memory access was encountered"
                )

            monkeypatch.setattr(driver.Stream, "synchronize", fail)
            with pytest.raises(
                EngineRunError, match="illegal memory access was encountered; if it goes on, restart"
            ):
                engine.run({"vector": vector_rows(2)})
            monkeypatch.undo()
            assert engine.run({"vector": vector_rows(2)})["scores"].shape == (2, 4)


@pytest.mark.filterwarnings(
    "ignore:.*out-of-thread context.*", "ignore::pytest.PytestUnraisableExceptionWarning"
)
class TestStrictness:
    """The fakes notice what would go wrong on a GPU: each of these breaks our runtime in one place."""

    def broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str, instead: Any
    ) -> None:
        with installed():
            module, _, kind = where.rpartition(".")
            monkeypatch.setattr(getattr(importlib.import_module(module), kind), name, instead)
            try:
                with compiled(tmp_path) as engine:
                    slot = engine.slot(SHAPES)
                    slot.inputs["vector"][...] = vector_rows(2)
                    slot.run()
            finally:
                monkeypatch.undo()

    def test_memory_that_is_not_freed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(gpu.MisuseError, match="left behind"):
            self.broken(tmp_path, monkeypatch, "engines.runtimes.cuda.Scope", "close", lambda _: None)

    def test_work_that_is_not_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(gpu.MisuseError, match="not waited for"):
            self.broken(tmp_path, monkeypatch, "engines.runtimes.cuda.Stream", "synchronize", lambda _: None)

    def test_shapes_that_are_not_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(EngineRunError, match="cannot tell the shape"):
            self.broken(
                tmp_path,
                monkeypatch,
                "engines.runtimes.tensorrt.slot.TensorRTSlot",
                "_set_shapes",
                lambda _: None,
            )

    def test_tensors_that_are_not_bound(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(gpu.MisuseError, match="unbound"):
            self.broken(
                tmp_path, monkeypatch, "engines.runtimes.tensorrt.slot.TensorRTSlot", "_bind", lambda _: None
            )

    def test_a_context_that_is_not_current(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(gpu.MisuseError, match="without a context"):
            self.broken(
                tmp_path,
                monkeypatch,
                "engines.runtimes.cuda.CudaDevice",
                "active",
                lambda _: contextlib.nullcontext(),
            )
