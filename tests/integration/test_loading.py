"""Versions from the store to a warm engine, with the real pipeline, runtime and rehearsal."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.building import quantize
from engines.errors import InvalidArtifactError
from engines.loading import LoadedEngine, load_engine
from engines.options import BuildOptions, Precision
from engines.runtimes.fit import Fit
from engines.runtimes.reference import ReferenceSession
from engines.workspace import PREPARED, PROOF, QUANTIZED, Workspace
from service.builds.sandbox import Limits, Sandbox
from service.catalog.catalog import Version
from service.errors import CancelledBuildError, SandboxError
from service.retention.engine_uses import EngineUses
from service.serving.engine_exchange import Compilation, EngineExchange
from service.serving.flight import FlightRecorder, read
from service.serving.loading import VersionLoader, subject_of
from service.serving.quarantine import CrashLog
from service.serving.rehearsals import Rehearsals
from service.storage.blobs import BlobStore, address
from service.storage.folder_store import FolderStore
from tests.unit.engines.onnx_graphs import conv_net, image_rows

OPTIONS = BuildOptions.parse({"batching": {"max_batch_rows": 4}})
LIMITS = Limits(timeout_s=120.0, memory_bytes=4 << 30)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished build."""
    folder = tmp_path_factory.mktemp("build")
    onnx.save_model(conv_net(), folder / "model.onnx")
    np.savez(folder / "samples.npz", image=image_rows(64))
    quantize(folder / "model.onnx", [folder / "samples.npz"], folder / "workspace", OPTIONS, threads=1)
    return Workspace(folder / "workspace")


class Alone(EngineExchange):
    """What a server does without a database: it compiles for itself."""

    def __init__(self) -> None:
        """Needs nothing."""

    @contextlib.contextmanager
    def compilation(
        self, version: Version, hardware: str, cancelled: Callable[[], bool]
    ) -> Iterator[Compilation]:
        yield Compilation(ours=False)


ALONE = Alone()


def loader(tmp_path: Path, **changes: object) -> VersionLoader:
    given: dict[str, object] = {
        "limits": LIMITS,
        "recorder": FlightRecorder(tmp_path / "flight"),
        "rehearsals": Rehearsals(tmp_path / "rehearsals.json"),
        "crashes": CrashLog(tmp_path / "crashes.json"),
        "exchange": ALONE,
        "uses": EngineUses(tmp_path / "engine-uses.json", tmp_path / "engines"),
        **changes,
    }
    return VersionLoader(
        store=FolderStore(tmp_path / "store"),
        folder=tmp_path / "serving",
        cache=tmp_path / "engines",
        threads=1,
        lanes=1,
        **given,  # type: ignore[arg-type] # each test names the fields that it changes
    )


def published(built: Workspace, store: BlobStore, *, without: str = "") -> Version:
    files = {name: store.put(built.path(name)) for name in built.list("") if name != without}
    return Version(
        model="m",
        number=1,
        build_id="b1",
        files=files,
        options=OPTIONS,
        summary={},
        created_at=0.0,
        default=True,
    )


def test_a_version_is_loaded_warm_and_answers_like_the_original(built: Workspace, tmp_path: Path) -> None:
    loads = loader(tmp_path)
    loaded = loads.load(published(built, loads.store))
    rows = image_rows(4, seed=9)
    with loaded.engine as engine:
        answer = engine.run({"image": rows})
    assert (loaded.precision, loaded.refusal) == (Precision.INT8, None)
    assert loaded.rules.batchable
    # A batch of 3 is padded to one of 4 where that was measured to be quicker.
    assert loaded.rules.sizes in ((1, 2, 3, 4), (1, 2, 4))
    assert loaded.signature.inputs["image"].shape == (None, 3, 8, 8)
    expected = ReferenceSession(built.path(PREPARED), threads=1).run({"image": rows})
    for name, values in expected.items():
        error = np.subtract(answer[name], values)
        assert np.square(error).mean() < 0.01 * np.square(values).mean()
    assert not (tmp_path / "serving" / "b1").exists()
    # What tells a broken engine from broken requests, and what it weighs.
    assert {name: array.shape for name, array in loaded.sample.items()} == {"image": (1, 3, 8, 8)}
    assert 10_000 < loaded.memory_bytes < 1 << 30


def test_a_version_is_rehearsed_once_on_the_same_machine(
    built: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = loader(tmp_path)
    version = published(built, loads.store)
    loads.load(version).engine.close()
    # A later server, whose rehearsals would all take too long. It finds nothing out that the rehearsal has.
    later = loader(tmp_path, limits=Limits(timeout_s=0.01, memory_bytes=4 << 30))
    monkeypatch.setattr("engines.runtimes.specialising.slots_ms", None)
    later.load(version).engine.close()
    with pytest.raises(SandboxError):
        later.load(replace(version, options=BuildOptions()))


def test_an_engine_is_loaded_as_its_rehearsal_found_it_to_suit(
    built: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Fit(threads=1, gains={2: 1.25})
    answer = {"fit": found.model_dump(mode="json"), "entries": []}
    monkeypatch.setattr(Sandbox, "call", lambda *_arguments, **_named: answer)
    seen = []

    def noted(*arguments: Any, fit: Fit, **named: Any) -> LoadedEngine:
        seen.append(fit)
        return load_engine(*arguments, fit=fit, **named)

    monkeypatch.setattr("service.serving.loading.load_engine", noted)
    # The second server knows it from the first one's file.
    for _ in range(2):
        loads = loader(tmp_path)
        loads.load(published(built, loads.store)).engine.close()
    assert seen == [found, found]


def test_a_version_that_a_crash_is_blamed_on_is_rehearsed_again(built: Workspace, tmp_path: Path) -> None:
    loads = loader(tmp_path)
    version = published(built, loads.store)
    loads.load(version).engine.close()
    CrashLog(tmp_path / "crashes.json").add([subject_of(version)], cause="SIGSEGV")
    later = loader(tmp_path, limits=Limits(timeout_s=0.01, memory_bytes=4 << 30))
    with pytest.raises(SandboxError):
        later.load(version)


def test_native_code_that_loads_a_version_is_on_record(
    built: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = loader(tmp_path)
    version = published(built, loads.store)
    seen: list[list[str]] = []

    def warm_up(*_: object, **__: object) -> None:
        seen.append([flown.subject.build_id for flown in read(tmp_path / "flight") if flown.running])
        raise MemoryError

    monkeypatch.setattr("service.serving.loading.warm_up", warm_up)
    with pytest.raises(MemoryError):
        loads.load(version)
    assert seen == [["b1"]]
    assert not [flown for flown in read(tmp_path / "flight") if flown.running]


def test_an_8_bit_engine_that_misses_its_contract_is_replaced_by_fp32(
    built: Workspace, tmp_path: Path
) -> None:
    # The proof promises more than 8 bits can give here.
    folder = tmp_path / "strict"
    strict = OPTIONS.model_copy(update={"contract": OPTIONS.contract.model_copy(update={"min": 200.0})})
    samples = built.path("upload/samples-000.npz")
    quantize(built.path("upload/model.onnx"), [samples], folder, strict, threads=1)
    loads = loader(tmp_path)
    loaded = loads.load(replace(published(Workspace(folder), loads.store), options=strict))
    loaded.engine.close()
    assert loaded.precision is Precision.FP32
    assert loaded.refusal is not None
    assert loaded.refusal.endswith("so FP32 serves.")


def test_a_missing_file_is_named(built: Workspace, tmp_path: Path) -> None:
    loads = loader(tmp_path)
    with pytest.raises(InvalidArtifactError, match=re.escape(QUANTIZED)):
        loads.load(published(built, loads.store, without=QUANTIZED))


def test_bytes_that_changed_in_the_store_are_not_loaded(built: Workspace, tmp_path: Path) -> None:
    loads = loader(tmp_path)
    version = published(built, loads.store)
    (tmp_path / "store" / address(version.files[PROOF])).write_bytes(b"something else")
    with pytest.raises(InvalidArtifactError, match="has changed in the store"):
        loads.load(version)
    assert not (tmp_path / "serving" / "b1").exists()


def test_a_version_that_takes_too_long_costs_the_child(built: Workspace, tmp_path: Path) -> None:
    loads = loader(tmp_path, limits=Limits(timeout_s=0.05, memory_bytes=4 << 30))
    with pytest.raises(SandboxError, match=r"loading version 1 of model 'm' was stopped after 0\.05 s"):
        loads.load(published(built, loads.store))


def test_a_server_that_stops_breaks_off_a_rehearsal(built: Workspace, tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    loads = loader(tmp_path, stopping=stopping)
    started_s = time.monotonic()
    with pytest.raises(CancelledBuildError):
        loads.load(published(built, loads.store))
    assert time.monotonic() - started_s < 10
