import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.access.gate import Gate
from service.access.key_follower import KeyFollower
from service.access.key_records import KeyRecords
from service.access.keys import Key, Quotas, new_key
from service.access.refusals import Refusals
from service.access.scopes import Scope
from service.catalog.catalog import Catalog
from service.errors import CatalogUnavailableError, KeyRefusedError
from service.settings import Settings
from tests.unit.service.access.test_gate import request
from tests.unit.service.live_server import until


@contextlib.asynccontextmanager
async def following(tmp_path: Path, catalog: Catalog) -> AsyncIterator[Gate]:
    gate = Gate(Settings(home=tmp_path), Refusals())
    follower = KeyFollower(catalog, gate, poll_s=0.01)
    follower.begin()
    task = asyncio.create_task(follower.follow())
    try:
        yield gate
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def added(catalog: Catalog) -> tuple[str, str]:
    text, key = new_key("ci", [Scope.INFER], Quotas())
    KeyRecords(catalog).add(key)
    return text, key.id


def opens(gate: Gate, text: str) -> bool:
    try:
        gate.admit(request(text), Scope.INFER)
    except KeyRefusedError:
        return False
    return True


async def test_keys_that_are_there_count_from_the_first_request_on(tmp_path: Path, catalog: Catalog) -> None:
    text, _ = added(catalog)
    async with following(tmp_path, catalog) as gate:
        assert gate.asks
        assert opens(gate, text)


async def test_what_is_done_to_keys_elsewhere_is_noticed_and_told(
    tmp_path: Path, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    _, earlier = added(catalog)
    with caplog.at_level(logging.INFO, "octet.audit"):
        async with following(tmp_path, catalog) as gate:
            text, key_id = added(catalog)
            await until(lambda: opens(gate, text))
            KeyRecords(catalog).limit(key_id, max_builds=3)
            await until(lambda: "key.limit" in caplog.text)
            KeyRecords(catalog).revoke(key_id)
            await until(lambda: not opens(gate, text))
    told = [
        (vars(record)["action"], vars(record)["subject"])
        for record in caplog.records
        if "subject" in vars(record)
    ]
    assert told == [("key.create", key_id), ("key.limit", key_id), ("key.revoke", key_id)]
    assert earlier not in caplog.text


async def test_while_the_database_is_away_keys_stay_as_they_are(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text, _ = added(catalog)
    asked = 0

    def away() -> int:
        nonlocal asked
        asked += 1
        raise CatalogUnavailableError("the database does not answer.")

    async with following(tmp_path, catalog) as gate:
        with monkeypatch.context() as broken:
            broken.setattr(catalog, "revision", away)
            await until(lambda: asked > 3)
            assert opens(gate, text)
        assert caplog.text.count("Keys stay as they are") == 1
        another, _ = added(catalog)
        await until(lambda: opens(gate, another))


async def test_keys_are_read_again_only_where_something_changed(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls, reads = 0, 0
    revision, everything = catalog.revision, KeyRecords.all

    def counted() -> int:
        nonlocal polls
        polls += 1
        return revision()

    def read(records: KeyRecords) -> list[Key]:
        nonlocal reads
        reads += 1
        return everything(records)

    monkeypatch.setattr(catalog, "revision", counted)
    monkeypatch.setattr(KeyRecords, "all", read)
    async with following(tmp_path, catalog):
        await until(lambda: polls > 3)
        assert reads == 1
        added(catalog)
        await until(lambda: reads == 2)
