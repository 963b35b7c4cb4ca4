"""What every runtime promises, written once and run for each of them."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import CompileError, EngineRunError
from engines.model.tensors import Array
from engines.options import Precision
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.engine_cache import EngineCache
from engines.runtimes.openvino import OpenVINORuntime
from engines.runtimes.reference import ReferenceRuntime, ReferenceSession
from engines.runtimes.slots import MAX_KEPT_SLOTS
from engines.runtimes.tensorrt.profiles import ShapeLimits
from tests.fakes import installed
from tests.unit.engines.onnx_graphs import conv_net, floats, image_rows, mlp, vector_rows

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "onnxruntime": ReferenceRuntime,
    "openvino": OpenVINORuntime,
    "openvino-streams": lambda: OpenVINORuntime(streams=2),
}
FAKED = {"tensorrt-10-fake": "10.16.1.11", "tensorrt-11-fake": "11.4.0.106"}
"""Our TensorRT runtime on a fake of TensorRT, pycuda and cuda-bindings: what it says to them, not what they do."""


@pytest.fixture(params=sorted([*RUNTIMES, *FAKED]))
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    if request.param in RUNTIMES:
        yield RUNTIMES[request.param]()
        return
    monkeypatch.setenv("FAKE_TENSORRT", FAKED[request.param])
    with installed():
        from engines.runtimes.tensorrt.runtime import TensorRTRuntime  # noqa: PLC0415 # it imports what is fake

        yield TensorRTRuntime(ShapeLimits(max_rows=MAX_KEPT_SLOTS + 1))


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def small_model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


class TestRuntimeContract:
    def test_names_types_and_shapes_are_those_of_the_onnx_file(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        with runtime.compile(write(tmp_path, conv_net()), threads=1) as engine:
            assert [spec.describe() for spec in engine.inputs] == ["image float32 [?, 3, 8, 8]"]
            assert [spec.describe() for spec in engine.outputs] == ["scores float32 [?, 4]"]

    @pytest.mark.parametrize("rows", [1, 3, 16])
    def test_any_number_of_rows_answers_like_the_reference(
        self, runtime: Runtime, tmp_path: Path, rows: int
    ) -> None:
        path = write(tmp_path, conv_net())
        feeds = {"image": image_rows(rows)}
        expected = ReferenceSession(path, threads=1).run(feeds)
        with runtime.compile(path, threads=1) as engine:
            assert_close(engine.run(feeds)["scores"], expected["scores"])

    def test_a_fixed_batch_is_kept(self, runtime: Runtime, tmp_path: Path) -> None:
        with runtime.compile(write(tmp_path, mlp(rows=4)), threads=1) as engine:
            assert engine.inputs[0].fixed_rows == 4
            assert engine.run({"vector": vector_rows(4)})["scores"].shape == (4, 4)
            with pytest.raises(EngineRunError, match=r"shape \[3, 12\]; send vector float32 \[4, 12\]"):
                engine.run({"vector": vector_rows(3)})

    def test_every_element_type_arrives_as_it_is(self, runtime: Runtime, tmp_path: Path) -> None:
        types = {
            "flag": (TensorProto.BOOL, np.array([[True, False]])),
            "half": (TensorProto.FLOAT16, np.array([[0.5, -2.0]], np.float16)),
            "single": (TensorProto.FLOAT, np.array([[0.25, -3.0]], np.float32)),
            "long": (TensorProto.INT64, np.array([[2**30, -(2**30)]])),
            "int": (TensorProto.INT32, np.array([[2**31 - 1, -(2**31)]], np.int32)),
            "byte": (TensorProto.UINT8, np.array([[255, 3]], np.uint8)),
            "char": (TensorProto.INT8, np.array([[-128, 127]], np.int8)),
        }
        # An Identity could be left out; a Transpose of every type has to be run, or at least understood.
        nodes = [helper.make_node("Transpose", [name], [f"{name}_out"], perm=[0, 1]) for name in types]
        inputs = [helper.make_tensor_value_info(name, kind, ["n", 2]) for name, (kind, _) in types.items()]
        outputs = [
            helper.make_tensor_value_info(f"{name}_out", kind, ["n", 2]) for name, (kind, _) in types.items()
        ]
        feeds = {name: value for name, (_, value) in types.items()}
        with runtime.compile(write(tmp_path, small_model(nodes, inputs, outputs)), threads=1) as engine:
            results = engine.run(feeds)
            assert [spec.name for spec in engine.outputs] == [f"{name}_out" for name in types]
            for name, value in feeds.items():
                assert results[f"{name}_out"].dtype == value.dtype, name
                np.testing.assert_array_equal(results[f"{name}_out"], value)

    def test_outputs_that_are_inputs_or_copies_keep_their_own_names(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["first"]),
            helper.make_node("Identity", ["first"], ["second"]),
            helper.make_node("Identity", ["x"], ["passed"]),
            helper.make_node("Neg", ["x"], ["last"]),
        ]
        names = ["last", "second", "first", "passed", "x"]
        model = small_model(nodes, [floats("x", "n", 3)], [floats(name, "n", 3) for name in names])
        rows = np.array([[-1, 0, 2], [5, -6, 7]], np.float32)
        with runtime.compile(write(tmp_path, model), threads=1) as engine:
            results = engine.run({"x": rows})
        assert list(results) == names
        np.testing.assert_array_equal(results["first"], np.maximum(rows, 0))
        np.testing.assert_array_equal(results["second"], np.maximum(rows, 0))
        np.testing.assert_array_equal(results["passed"], rows)
        np.testing.assert_array_equal(results["x"], rows)
        np.testing.assert_array_equal(results["last"], -rows)

    def test_an_input_that_nothing_reads_is_still_an_input(self, runtime: Runtime, tmp_path: Path) -> None:
        model = small_model(
            [helper.make_node("Relu", ["x"], ["y"])],
            [floats("unused", "n", 2), floats("x", "n", 3)],
            [floats("y", "n", 3)],
        )
        with runtime.compile(write(tmp_path, model), threads=1) as engine:
            assert [spec.name for spec in engine.inputs] == ["unused", "x"]
            feeds = {"unused": np.ones((2, 2), np.float32), "x": np.ones((2, 3), np.float32)}
            assert engine.run(feeds)["y"].sum() == 6

    def test_the_caller_owns_what_run_takes_and_returns(self, runtime: Runtime, tmp_path: Path) -> None:
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            rows = vector_rows(2)
            before = rows.copy()
            first = engine.run({"vector": rows})["scores"]
            kept = first.copy()
            engine.run({"vector": rows + 1})
            np.testing.assert_array_equal(rows, before)
            np.testing.assert_array_equal(first, kept)

    def test_slots_held_at_the_same_time_share_nothing(self, runtime: Runtime, tmp_path: Path) -> None:
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            first, second = engine.slot({"vector": (2, 12)}), engine.slot({"vector": (2, 12)})
            assert first is not second
            first.inputs["vector"][...] = 1
            second.inputs["vector"][...] = -2
            answers = first.run()["scores"]
            kept = answers.copy()
            second.run()
            np.testing.assert_array_equal(answers, kept)
            np.testing.assert_array_equal(first.inputs["vector"], np.ones((2, 12), np.float32))

    def test_a_slot_is_handed_out_again_only_once_it_is_released(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            shapes = {"vector": (2, 12)}
            first = engine.slot(shapes)
            second = engine.slot(shapes)
            engine.release(first)
            assert engine.slot(shapes) is first
            assert engine.slot(shapes) not in (first, second)

    def test_slots_that_are_held_share_no_memory_whatever_their_shapes(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            released, held = engine.slot({"vector": (4, 12)}), engine.slot({"vector": (4, 12)})
            engine.release(released)
            smaller = engine.slot({"vector": (2, 12)})
            larger = engine.slot({"vector": (5, 12)})
            slots = (held, smaller, larger)
            for number, slot in enumerate(slots):
                slot.inputs["vector"][...] = number
            for number, slot in enumerate(slots):
                assert (slot.inputs["vector"] == number).all()

    def test_a_slot_answers_for_what_was_last_written_into_it(self, runtime: Runtime, tmp_path: Path) -> None:
        path = write(tmp_path, mlp())
        with runtime.compile(path, threads=1) as engine:
            slot = engine.slot({"vector": (2, 12)})
            for seed in (1, 2):
                rows = vector_rows(2, seed=seed)
                slot.inputs["vector"][...] = rows
                assert_close(
                    slot.run()["scores"], ReferenceSession(path, threads=1).run({"vector": rows})["scores"]
                )

    def test_a_batch_that_was_compiled_by_itself_answers_alike(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        rows = {"vector": vector_rows(4)}
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            general = engine.run(rows)
            engine.specialise({"vector": (4, 12)})
            assert_close(engine.run(rows)["scores"], general["scores"])
            assert len(engine.run({"vector": vector_rows(3)})["scores"]) == 3
            engine.generalise({"vector": (4, 12)})
            assert_close(engine.run(rows)["scores"], general["scores"])

    def test_shapes_without_end_do_not_keep_slots_without_end(self, runtime: Runtime, tmp_path: Path) -> None:
        with runtime.compile(write(tmp_path, mlp()), threads=1) as engine:
            slots = [engine.slot({"vector": (rows, 12)}) for rows in range(1, MAX_KEPT_SLOTS + 2)]
            for slot in slots:
                engine.release(slot)
            assert engine.slot({"vector": (1, 12)}) is not slots[0]
            assert engine.slot({"vector": (2, 12)}) is slots[1]

    def test_slots_run_in_two_threads_each_with_its_own_answers(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        path = write(tmp_path, mlp())
        expected = {
            seed: ReferenceSession(path, threads=1).run({"vector": vector_rows(4, seed=seed)})["scores"]
            for seed in (1, 2)
        }
        wrong: list[int] = []
        with runtime.compile(path, threads=1) as engine:

            def work(seed: int) -> None:
                for _ in range(50):
                    scores = engine.run({"vector": vector_rows(4, seed=seed)})["scores"]
                    if not np.allclose(scores, expected[seed]):
                        wrong.append(seed)

            threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    def test_a_batch_that_does_not_fit_is_refused_in_a_sentence(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        with runtime.compile(write(tmp_path, conv_net()), threads=1) as engine:
            with pytest.raises(EngineRunError, match="lacks the input 'image'"):
                engine.run({})
            with pytest.raises(EngineRunError, match="no input 'imag'; it reads image float32"):
                engine.run({"imag": image_rows(1), "image": image_rows(1)})
            with pytest.raises(EngineRunError, match=r"has the shape \[2, 3, 8, 9\]; send image"):
                engine.run({"image": np.zeros((2, 3, 8, 9), np.float32)})
            with pytest.raises(EngineRunError, match="element type float64; send image float32"):
                engine.run({"image": image_rows(1).astype(np.float64)})

    def test_a_node_that_fails_on_a_batch_is_named_in_a_sentence(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        node = helper.make_node("Add", ["x", "y"], ["total"], name="total")
        model = small_model([node], [floats("x", "n", 4), floats("y", "m", 4)], [floats("total", None, 4)])
        rows = {count: np.ones((count, 4), np.float32) for count in (2, 3)}
        with runtime.compile(write(tmp_path, model), threads=1) as engine:
            assert engine.run({"x": rows[3], "y": rows[3]})["total"].sum() == 24
            with pytest.raises(EngineRunError, match=r"this batch: .*\btotal\b") as caught:
                engine.run({"x": rows[2], "y": rows[3]})
            assert_sentence(str(caught.value))
            assert engine.run({"x": rows[3], "y": rows[3]})["total"].sum() == 24

    def test_a_model_that_it_does_not_take_is_a_compile_error_in_a_sentence(
        self, runtime: Runtime, tmp_path: Path
    ) -> None:
        node = helper.make_node("Det", ["x"], ["y"], name="determinant")
        number = helper.make_tensor_value_info("x", TensorProto.INT32, ["n", 2, 2])
        result = helper.make_tensor_value_info("y", TensorProto.INT32, ["n"])
        with pytest.raises(CompileError, match="Det") as caught:
            runtime.compile(write(tmp_path, small_model([node], [number], [result])), threads=1)
        assert_sentence(str(caught.value))

    @pytest.mark.parametrize("content", [b"no model", b""])
    def test_a_file_that_is_no_model_is_a_compile_error(
        self, runtime: Runtime, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(CompileError) as caught:
            runtime.compile(path, threads=1)
        assert_sentence(str(caught.value))

    def test_a_closed_engine_says_so(self, runtime: Runtime, tmp_path: Path) -> None:
        engine = runtime.compile(write(tmp_path, mlp()), threads=1)
        engine.close()
        engine.close()
        with pytest.raises(EngineRunError, match="closed"):
            engine.run({"vector": vector_rows(1)})

    def test_the_hardware_key_is_stable_and_fit_for_a_file_name(self, runtime: Runtime) -> None:
        assert runtime.hardware_key() == runtime.hardware_key()
        assert re.fullmatch(r"[a-z0-9._-]+", runtime.hardware_key())

    def test_fp32_is_never_emulated_and_fp8_is_on_processors(self, runtime: Runtime) -> None:
        """No processor that octet runs on computes FP8; what it emulates must not pass for a gain in speed."""
        assert not runtime.emulates(Precision.FP32)
        assert runtime.emulates(Precision.FP8) == (runtime.name != "tensorrt")

    def test_weights_have_seven_or_eight_bits(self, runtime: Runtime) -> None:
        assert runtime.weight_bits() in (7, 8)


class TestEngineCache:
    def test_the_second_engine_is_read_back_and_answers_the_same(self, tmp_path: Path) -> None:
        path, cache = write(tmp_path, conv_net()), tmp_path / "cache"
        feeds = {"image": image_rows(3)}
        with OpenVINORuntime().compile(path, threads=1, cache=cache) as engine:
            first = engine.run(feeds)["scores"]
        (entry,) = kept(cache)
        assert entry.parent.name == OpenVINORuntime().hardware_key()
        written = entry.stat().st_ino
        with OpenVINORuntime().compile(path, threads=1, cache=cache) as engine:
            np.testing.assert_array_equal(engine.run(feeds)["scores"], first)
            assert [spec.describe() for spec in engine.inputs] == ["image float32 [?, 3, 8, 8]"]
        assert entry.stat().st_ino == written

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
    def test_a_damaged_entry_is_compiled_anew_and_replaced(self, tmp_path: Path, damage: str) -> None:
        path, cache = write(tmp_path, conv_net()), tmp_path / "cache"
        feeds = {"image": image_rows(3)}
        with OpenVINORuntime().compile(path, threads=1, cache=cache) as engine:
            first = engine.run(feeds)["scores"]
        (entry,) = kept(cache)
        good = entry.read_bytes()
        entry.write_bytes(
            {
                "truncated": good[: len(good) // 2],
                "flipped": good[:-200] + bytes([good[-200] ^ 1]) + good[-199:],
                "empty": b"",
                "foreign": sealed(b"an engine of another OpenVINO"),
            }[damage]
        )
        with OpenVINORuntime().compile(path, threads=1, cache=cache) as engine:
            np.testing.assert_array_equal(engine.run(feeds)["scores"], first)
        assert len(entry.read_bytes()) == len(good)
        assert [path.name for path in entry.parent.iterdir()] == [entry.name]

    def test_another_model_gets_an_entry_of_its_own(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        for seed in (1, 2):
            OpenVINORuntime().compile(write(tmp_path, mlp(seed=seed)), threads=1, cache=cache).close()
        assert len(kept(cache)) == 2

    def test_a_folder_that_cannot_be_written_costs_nothing_but_time(self, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_bytes(b"")
        with OpenVINORuntime().compile(write(tmp_path, mlp()), threads=1, cache=blocked) as engine:
            assert isinstance(engine, Engine)


def test_integers_that_openvino_would_cut_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["ids", "ids"], ["twice"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 2])
    twice = helper.make_tensor_value_info("twice", TensorProto.INT64, ["n", 2])
    with OpenVINORuntime().compile(write(tmp_path, small_model([node], [ids], [twice])), threads=1) as engine:
        assert engine.run({"ids": np.array([[2**29, -7]])})["twice"].tolist() == [[2**30, -14]]
        with pytest.raises(EngineRunError, match=r"input 'ids' holds 2147483648, but .* 32-bit"):
            engine.run({"ids": np.array([[1, 2**31]])})


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_the_cache_hands_out_nothing_that_does_not_match_its_hash(tmp_path: Path, place: int) -> None:
    cache = EngineCache(tmp_path)
    cache.put("key", b"an engine")
    assert cache.get("key") == b"an engine"
    content = bytearray((tmp_path / "key.engine").read_bytes())
    content[place] ^= 1
    (tmp_path / "key.engine").write_bytes(content)
    assert cache.get("key") is None
    assert cache.get("other") is None


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit_bytes=3 * (32 + 100))
    for number, key in enumerate("abc"):
        cache.put(key, bytes(100))
        os.utime(tmp_path / f"{key}.engine", (number, number))
    assert cache.get("a") == bytes(100)
    cache.put("d", bytes(100))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]


PROBE = (
    "from engines.runtimes.openvino import OpenVINORuntime as R; print(R().weight_bits(), R().hardware_key())"
)


def has_vnni() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_vnni" in cpuinfo.read_text()


class TestInstructionSets:
    @pytest.mark.skipif(not has_vnni(), reason="this processor has no AVX512-VNNI to take away")
    def test_weights_have_8_bits_with_vnni_and_7_without_it(self) -> None:
        with_vnni, without_vnni = probed(None), probed("AVX2")
        assert (with_vnni[0], without_vnni[0], probed("AVX512_CORE")[0]) == ("8", "7", "7")
        assert with_vnni[1] != without_vnni[1]


def test_openvino_is_imported_without_reporting_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "calls = []\n"
        "sys.addaudithook(lambda event, args: event.startswith('socket.') and calls.append(event))\n"
        "from engines.runtimes.openvino import OpenVINORuntime\n"
        "OpenVINORuntime().weight_bits()\n"
        "inside = ('openvino_telemetry.', 'openvino.tools.ovc.')\n"
        "print(calls, [name for name in sys.modules if name.startswith(inside)])\n"
    )
    # A new user's home: where nobody ever opted out. Variables that mark a CI machine would opt out, too.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = run_python(script, environment)
    assert done == "[] []"
    assert list(tmp_path.rglob("*")) == []


def test_onnxruntime_runs_without_reporting_it(tmp_path: Path) -> None:
    script = (
        "from engines.runtimes.reference import ReferenceSession\n"
        "from tests.unit.engines import onnx_graphs\n"
        "session = ReferenceSession(onnx_graphs.mlp(), threads=1)\n"
        "print(len(session.run({'vector': onnx_graphs.vector_rows(2)})))\n"
    )
    # Its network code is native, where no hook sees it: what it leaves behind is the sign of it, an identifier and a
    # queue of events in the user's cache folder, and a session in the temporary one. A value that the user chose and
    # variables that mark a CI machine must make no difference.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "ORT_DISABLE_TELEMETRY": "0",
    }
    assert run_python(script, environment) == "1"
    assert list(tmp_path.rglob("*")) == []


def probed(instruction_set: str | None) -> tuple[str, str]:
    environment = dict(os.environ)
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    if instruction_set is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = instruction_set
    bits, key = run_python(PROBE, environment).split()
    return bits, key


def run_python(script: str, environment: dict[str, str]) -> str:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.engine"))


def sealed(engine: bytes) -> bytes:
    return hashlib.sha256(engine).digest() + engine


def assert_close(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    assert np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-4, atol=1e-5)


def assert_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 420
    assert not re.search(r"\.(cpp|cc|h):\d+", message), message
