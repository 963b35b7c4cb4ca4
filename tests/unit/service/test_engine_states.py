from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from engines.options import BuildOptions
from service.catalog import engine_states as module
from service.catalog.catalog import Catalog, NewBuild, Version
from service.catalog.engine_states import EngineStates
from service.catalog.records import EngineState, EngineStatus
from service.catalog.schema import EngineRow
from tests.databases import PostgreSQL

KEY = "openvino-here"
VERIFIED = EngineStatus(
    hardware=KEY, state=EngineState.VERIFIED, reason=None, files={f"{KEY}/a.engine": "sha256:a"}
)


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql_server")
        url = server.new_catalog()
    opened = Catalog(url)
    yield opened
    opened.close()


@pytest.fixture
def states(catalog: Catalog) -> EngineStates:
    return EngineStates(catalog)


def publish(catalog: Catalog, engine: EngineStatus | None = None) -> Version:
    new = NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={})
    build, _ = catalog.accept(new, force=True)
    return catalog.publish(build.id, files={}, summary={}, engine=engine)


def test_one_holder_compiles_and_the_others_see_how_far_it_is(catalog: Catalog, states: EngineStates) -> None:
    version = publish(catalog)
    assert states.hold(version, KEY, "a") is None
    assert states.hold(version, KEY, "a") is None, "it goes on"
    seen = states.hold(version, KEY, "b")
    assert seen is not None
    assert seen.state is EngineState.COMPILING
    assert states.hold(version, "other", "b") is None
    states.settle(version, VERIFIED, "a")
    assert states.hold(version, KEY, "b") == VERIFIED
    assert [known.hardware for known in states.of("m", 1)] == [KEY, "other"]


def test_a_holder_of_which_nothing_is_heard_is_replaced_and_settles_nothing(
    catalog: Catalog, states: EngineStates
) -> None:
    version = publish(catalog)
    states.hold(version, KEY, "a")
    grow_old(catalog)
    states.keep(version, KEY, "a")
    assert states.hold(version, KEY, "b") is not None, "it was heard of"
    grow_old(catalog)
    assert states.hold(version, KEY, "b") is None
    states.settle(version, VERIFIED, "a")
    states.drop(version, KEY, "a")
    assert [known.state for known in states.of("m", 1)] == [EngineState.COMPILING]
    states.settle(version, VERIFIED, "b")
    assert states.of("m", 1) == [VERIFIED]


def test_what_came_to_nothing_may_be_tried_by_the_next(catalog: Catalog, states: EngineStates) -> None:
    version = publish(catalog)
    states.hold(version, KEY, "a")
    states.drop(version, KEY, "a")
    assert states.of("m", 1) == []
    assert states.hold(version, KEY, "b") is None


def test_a_build_brings_the_engine_of_its_hardware(catalog: Catalog, states: EngineStates) -> None:
    version = publish(catalog, VERIFIED)
    assert states.hold(version, KEY, "a") == VERIFIED
    assert "sha256:a" in catalog.digests()


def test_engines_go_with_their_version(catalog: Catalog, states: EngineStates) -> None:
    first, second = publish(catalog, VERIFIED), publish(catalog, VERIFIED)
    catalog.delete_version("m", first.number)
    assert (states.of("m", first.number), states.of("m", second.number)) == ([], [VERIFIED])
    catalog.delete_model("m")
    assert states.of("m", second.number) == []


def grow_old(catalog: Catalog) -> None:
    with catalog.change() as session:
        session.execute(sa.update(EngineRow).values(changed_at=EngineRow.changed_at - module.HOLD_S - 1))
