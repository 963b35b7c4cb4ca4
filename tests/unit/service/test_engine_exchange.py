import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.errors import EngineRefusedError
from engines.options import BuildOptions
from service.catalog.catalog import Catalog, NewBuild, Version
from service.catalog.engine_states import EngineStates
from service.catalog.holds import Holds
from service.catalog.records import EngineState
from service.catalog.retention import Retention
from service.errors import CancelledBuildError, CatalogUnavailableError, SandboxError, StorageFullError
from service.serving.engine_exchange import EngineExchange
from service.storage.folder_store import FolderStore

KEY, ENTRY = "openvino-here", "openvino-here/a.engine"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


@pytest.fixture
def version(catalog: Catalog) -> Version:
    build, _ = catalog.accept(NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={}))
    return catalog.publish(build.id, files={}, summary={})


@pytest.fixture
def states(catalog: Catalog) -> EngineStates:
    return EngineStates(catalog)


def server(states: EngineStates, tmp_path: Path, name: str, *, shared: bool = True) -> EngineExchange:
    store = FolderStore(tmp_path / "store")
    return EngineExchange(states, Holds(states._catalog), store, tmp_path / name, shared=shared)


def compile_into(cache: Path) -> None:
    (cache / ENTRY).parent.mkdir(parents=True, exist_ok=True)
    (cache / ENTRY).write_bytes(b"an engine")


def never() -> bool:
    return False


def test_the_first_server_compiles_and_the_second_takes_what_came_of_it(
    states: EngineStates, version: Version, tmp_path: Path
) -> None:
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        assert compilation.ours
        compile_into(tmp_path / "a")
        compilation.entries = [ENTRY]
    with server(states, tmp_path, "b").compilation(version, KEY, never) as compilation:
        assert not compilation.ours
        assert (tmp_path / "b" / ENTRY).read_bytes() == b"an engine"
    assert [path.name for path in (tmp_path / "b").iterdir()] == [KEY], "nothing else is left"
    assert [known.state for known in states.of("m", 1)] == [EngineState.VERIFIED]


def test_all_engines_of_a_version_are_taken(states: EngineStates, version: Version, tmp_path: Path) -> None:
    names = [f"{KEY}/{number}.engine" for number in range(3)]
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        (tmp_path / "a" / KEY).mkdir(parents=True)
        for name in names:
            (tmp_path / "a" / name).write_text(name)
        compilation.entries = names
    with server(states, tmp_path, "b").compilation(version, KEY, never):
        assert [(tmp_path / "b" / name).read_text() for name in names] == names
    assert [path.name for path in (tmp_path / "b").iterdir()] == [KEY]


def test_a_server_waits_for_one_that_compiles(states: EngineStates, version: Version, tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with server(states, tmp_path, "b").compilation(version, KEY, never) as compilation:
            order.append(f"second, ours: {compilation.ours}")

    thread = threading.Thread(target=second)
    with server(states, tmp_path, "a").compilation(version, KEY, never):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second, ours: False"]


def test_a_server_that_stops_does_not_wait(states: EngineStates, version: Version, tmp_path: Path) -> None:
    waiting = server(states, tmp_path, "b").compilation(version, KEY, lambda: True)
    with (
        server(states, tmp_path, "a").compilation(version, KEY, never),
        pytest.raises(CancelledBuildError),
        waiting,
    ):
        pass


def test_refusals_are_known_to_all(states: EngineStates, version: Version, tmp_path: Path) -> None:
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        compilation.refusal = "12 dB instead of 20."
    [known] = states.of("m", 1)
    assert (known.state, known.reason) == (EngineState.REFUSED, "12 dB instead of 20.")
    with (
        pytest.raises(EngineRefusedError),
        server(states, tmp_path, "a").compilation(version, "other", never),
    ):
        raise EngineRefusedError("nothing answers.")
    assert states.of("m", 1)[1].reason == "nothing answers."


def test_a_crash_says_nothing_of_the_version(states: EngineStates, version: Version, tmp_path: Path) -> None:
    with pytest.raises(SandboxError), server(states, tmp_path, "a").compilation(version, KEY, never):
        raise SandboxError("killed.")
    assert states.of("m", 1) == []


def test_an_engine_that_is_lost_in_the_store_is_compiled_again(
    states: EngineStates, version: Version, tmp_path: Path
) -> None:
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        compile_into(tmp_path / "a")
        compilation.entries = [ENTRY]
    store = FolderStore(tmp_path / "store")
    store.delete([states.of("m", 1)[0].files[ENTRY]])
    with server(states, tmp_path, "b").compilation(version, KEY, never):
        assert not (tmp_path / "b" / ENTRY).exists()


def test_one_machine_alone_stores_no_engines(states: EngineStates, version: Version, tmp_path: Path) -> None:
    with server(states, tmp_path, "a", shared=False).compilation(version, KEY, never) as compilation:
        compile_into(tmp_path / "a")
        compilation.entries = [ENTRY]
    [known] = states.of("m", 1)
    assert (known.state, known.files) == (EngineState.VERIFIED, {})


def test_without_a_database_a_server_compiles_for_itself(
    states: EngineStates, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise CatalogUnavailableError("the database does not answer.")

    monkeypatch.setattr(states, "hold", away)
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        assert not compilation.ours


def test_what_is_shared_is_held_until_it_is_named(
    states: EngineStates, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention, adopt, seen = Retention(states._catalog), FolderStore.adopt, list[bool]()

    def watched(store: FolderStore, file: Path, digest: str) -> None:
        seen.append(digest in retention.kept())
        adopt(store, file, digest)

    monkeypatch.setattr(FolderStore, "adopt", watched)
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        compile_into(tmp_path / "a")
        compilation.entries = [ENTRY]
    assert seen == [True]
    assert retention.kept() == set(states.of("m", 1)[0].files.values())


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_or_database_only_costs_others_the_time_to_compile(
    states: EngineStates, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, full: bool
) -> None:
    def refuse(*_: object) -> None:
        raise StorageFullError("no room is left.")

    if full:
        monkeypatch.setattr(FolderStore, "adopt", refuse)
    else:
        monkeypatch.setattr(states._catalog, "turn", refuse)
    with server(states, tmp_path, "a").compilation(version, KEY, never) as compilation:
        compile_into(tmp_path / "a")
        compilation.entries = [ENTRY]
    monkeypatch.undo()
    assert states.of("m", 1) == []
