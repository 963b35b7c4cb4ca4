"""What needs TensorRT: engines of 8 bits and their rest in 16, plans, batches side by side, memory."""

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.calibration.magnitudes import with_magnitudes
from engines.errors import CompileError
from engines.model.model import save_model
from engines.model.tensors import Array
from engines.options import Precision
from engines.runtimes.base import Engine, Runtime
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import image_rows
from tests.unit.engines.test_half_precision import magnitudes, quantized, sqnr_db

pytestmark = pytest.mark.timeout(600)
ROWS = image_rows(8)


def written(folder: Path, precision: Precision, *, half: bool, seed: int = 0) -> tuple[Path, Array]:
    """An 8-bit network of convolutions, and what it answers `ROWS` by the standard."""
    proto = onnx_graphs.residual_net(opset=21, channels=64, seed=seed)
    model = quantized(proto, precision)
    if half:
        model = with_magnitudes(model, magnitudes(proto, {"image": ROWS}))
    path = folder / f"{precision}-{half}-{seed}.onnx"
    save_model(model, path)
    return path, ReferenceSession(onnx.load(path), threads=1).run({"image": ROWS})["scores"]


def types(engine: Engine) -> set[str]:
    return set(engine.layers.by_type) if engine.layers else set()


@pytest.mark.parametrize("half", [False, True])
def test_an_int8_engine_answers_like_the_graph_and_runs_in_8_bits(
    tensorrt: Runtime, tmp_path: Path, half: bool
) -> None:
    path, wanted = written(tmp_path, Precision.INT8, half=half)
    with tensorrt.compile(path, threads=1) as engine:
        assert sqnr_db(wanted, engine.run({"image": ROWS})["scores"]) > 25
        assert "int8" in types(engine)


def test_an_fp8_engine_answers_like_the_graph_where_the_gpu_has_fp8(
    tensorrt: Runtime, tmp_path: Path
) -> None:
    path, wanted = written(tmp_path, Precision.FP8, half=True)
    try:
        engine = tensorrt.compile(path, threads=1)
    except CompileError as error:
        if "FP8 begins with" in str(error):
            pytest.skip(str(error))  # the GPU is older than FP8
        raise
    with engine:
        assert sqnr_db(wanted, engine.run({"image": ROWS})["scores"]) > 15


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_batch_of_any_size_up_to_the_largest_answers_each_row_alike(
    tensorrt: Runtime, tmp_path: Path, rows: int
) -> None:
    path, _ = written(tmp_path, Precision.INT8, half=False)
    feeds = {"image": image_rows(rows)}
    wanted = ReferenceSession(onnx.load(path), threads=1).run(feeds)["scores"]
    with tensorrt.compile(path, threads=1) as engine:
        slot = engine.slot({"image": feeds["image"].shape})
        for _ in range(3):
            slot.inputs["image"][...] = feeds["image"]
            assert sqnr_db(wanted, slot.run()["scores"]) > 25


def test_a_stored_plan_answers_bit_for_bit_and_a_damaged_one_is_compiled_anew(
    tensorrt: Runtime, tmp_path: Path
) -> None:
    path, _ = written(tmp_path, Precision.INT8, half=False)
    cache = tmp_path / "engines"
    answers = []
    for damaged in (False, False, True):
        if damaged:
            for file in (file for file in cache.rglob("*") if file.is_file() and file.suffix != ".secret"):
                file.write_bytes(file.read_bytes()[:-1] + b"?")
        with tensorrt.compile(path, threads=1, cache=cache) as engine:
            answers.append(engine.run({"image": ROWS})["scores"])
    assert np.array_equal(answers[0], answers[1])
    assert sqnr_db(answers[0], answers[2]) > 25


def test_batches_side_by_side_get_their_own_answers(tensorrt: Runtime, tmp_path: Path) -> None:
    path, _ = written(tmp_path, Precision.INT8, half=False)
    with tensorrt.compile(path, threads=1) as engine:
        alone = [engine.run({"image": image_rows(4, seed=seed)})["scores"] for seed in range(4)]
        slots = [engine.slot({"image": (4, *onnx_graphs.IMAGE_ITEM)}) for _ in alone]
        wrong: list[int] = []

        def work(number: int) -> None:
            for _ in range(50):
                slots[number].inputs["image"][...] = image_rows(4, seed=number)
                if not np.array_equal(slots[number].run()["scores"], alone[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(slots))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_engines_that_come_and_go_leave_no_memory_behind(tensorrt: Runtime, tmp_path: Path) -> None:
    cuda: Any = importlib.import_module("engines.runtimes.cuda")

    def free_bytes() -> int:
        with cuda.default_device().active():
            return int(cuda.driver.mem_get_info()[0])

    path, _ = written(tmp_path, Precision.INT8, half=False)
    cache = tmp_path / "engines"
    left = []
    for _ in range(6):
        with tensorrt.compile(path, threads=1, cache=cache) as engine:
            engine.run({"image": ROWS})
        left.append(free_bytes())
    assert left[1] - left[-1] < 64 << 20
