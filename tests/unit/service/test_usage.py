import os
import time
from pathlib import Path

import pytest

from engines import hardware_key
from engines.options import BuildOptions
from loadtests.awaiting import submit
from service.catalog.catalog import Catalog
from service.catalog.records import EngineState, EngineStatus
from service.catalog.retention import Retention
from service.catalog.schema import EngineRow, VersionRow
from service.retention.engine_uses import EngineUses
from service.serving.deployments import Deployments
from service.serving.usage import Usage
from tests.unit.service.followed import Loader, following, publish, until


@pytest.fixture
def uses(tmp_path: Path) -> EngineUses:
    return EngineUses(tmp_path / "engine-uses.json", tmp_path / "engines")


def used_at(catalog: Catalog, number: int) -> float | None:
    with catalog.look() as session:
        return session.get_one(VersionRow, ("m", number)).used_at


def engine_used_at(catalog: Catalog, number: int, hardware: str) -> float | None:
    with catalog.look() as session:
        return session.get_one(EngineRow, ("m", number, hardware)).used_at


async def answer(deployments: Deployments, number: int) -> None:
    deployment = deployments.find("m", str(number))
    await submit(deployment.batcher, {"x": Loader.rows(1.0)})


async def test_versions_that_answered_since_are_noted(
    catalog: Catalog, loader: Loader, uses: EngineUses
) -> None:
    publish(catalog, "m")
    publish(catalog, "m")
    async with following(catalog, loader) as deployments:
        usage = Usage(deployments, Retention(catalog), uses)
        await until(lambda: len(deployments.ready_versions("m")) == 2)
        await usage.note()
        first = used_at(catalog, 1), used_at(catalog, 2)
        await answer(deployments, 1)
        await usage.note()
        assert used_at(catalog, 2) == first[1]
        again = used_at(catalog, 1)
        assert again is not None
        assert first[0] is not None
        assert again > first[0]
        await usage.note()
        assert used_at(catalog, 1) == again


async def test_engines_in_memory_are_noted_and_their_files_are_young(
    catalog: Catalog, loader: Loader, uses: EngineUses, tmp_path: Path
) -> None:
    here = hardware_key(BuildOptions())
    version = publish(catalog, "m")
    with catalog.change() as session:
        for hardware in (here, "elsewhere"):
            status = EngineStatus(hardware=hardware, state=EngineState.VERIFIED, reason=None, files={})
            session.add(
                EngineRow(
                    model="m", number=1, hardware=hardware, state=status.state, files={}, changed_at=1.0
                )
            )
    theirs, other = (tmp_path / "engines" / here / f"{name}.engine" for name in ("theirs", "other"))
    for path in (theirs, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"engine")
    uses.note(version.build_id, [theirs])
    uses.note("another build", [other])
    for path in (theirs, other):
        os.utime(path, (1.0, 1.0))
    async with following(catalog, loader) as deployments:
        await until(lambda: bool(deployments.ready_versions("m")))
        await Usage(deployments, Retention(catalog), uses).note()
    noted = engine_used_at(catalog, 1, here)
    assert noted is not None
    assert abs(noted - time.time()) < 60
    assert engine_used_at(catalog, 1, "elsewhere") is None
    assert theirs.stat().st_mtime > 1.0
    assert other.stat().st_mtime == 1.0
