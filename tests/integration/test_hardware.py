"""Two kinds of hardware in one fleet, as `ONEDNN_MAX_CPU_ISA` makes them of one machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import PostgreSQL
from tests.integration.fleet import Fleet, fleet
from tests.integration.running import Octet

OLD = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture
def octets(tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgreSQL) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("hardware"), postgresql_server) as made:
        yield made


@pytest.mark.timeout(400)
def test_each_kind_of_hardware_compiles_once_and_proves_for_itself(octets: Fleet) -> None:
    new = octets.add_server()
    octets.add_worker()
    octets.wait_until_ready()
    built = octets.ended(new.upload("m").json()["id"])
    assert built["state"] == "succeeded", built["error"]
    octets.wait(lambda: new.serves("m"), "the version to be served", 60)
    [here] = engines(new)
    assert here["state"] == "verified"
    assert kept(new) == {here["hardware"]}

    first = octets.add_server(**OLD)
    octets.wait_until_ready()
    assert first.serves("m"), "a server is ready once it has compiled what nobody of its hardware had"
    states = {engine["hardware"]: engine for engine in engines(first)}
    assert len(states) == 2
    [there] = states.keys() - {here["hardware"]}
    assert "avx2" in there
    assert states[there]["state"] in ("verified", "refused")
    assert kept(first) == {there}

    second = octets.add_server(**OLD)
    octets.wait_until_ready()
    assert second.serves("m")
    assert engines(second) == engines(first), "it was not compiled again"
    assert {path.name for path in entries(second)} == {path.name for path in entries(first)}
    assert [path.read_bytes() for path in entries(second)] == [path.read_bytes() for path in entries(first)]
    assert "could not be taken from the store" not in second.log
    for server in (new, first, second):
        assert server.infer("m").status_code == 200


@pytest.mark.timeout(300)
def test_builds_go_to_workers_on_hardware_like_the_servers(octets: Fleet) -> None:
    octets.add_server(**OLD)
    other, like = octets.add_worker(), octets.add_worker(**OLD)
    octets.wait_until_ready()
    build_id = octets.servers[0].upload("m").json()["id"]
    octets.wait(lambda: bool(like.build_children()), "the worker like the server to begin", 60)
    assert octets.ended(build_id)["state"] == "succeeded"
    assert "build" not in [line for line in other.log.splitlines() if "took" in line]
    [engine] = engines(octets.servers[0])
    assert "avx2" in engine["hardware"]


def engines(server: Octet) -> list[dict[str, str]]:
    found: list[dict[str, str]] = server.client.get("/v1/models/m/versions/1").json()["engines"]
    return found


def entries(server: Octet) -> list[Path]:
    return sorted((server.home / "engines").glob("*/*.engine"))


def kept(server: Octet) -> set[str]:
    return {path.parent.name for path in entries(server)}
