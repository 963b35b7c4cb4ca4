"""docs/scaling.md: what it computes, from what it says was measured."""

import re
from decimal import Decimal

import pytest

from tests.unit.deployment.monitoring import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SERVERS_OF_A_WORKER = 10
LOADED_VERSIONS = 20


def row(name: str) -> list[float]:
    """The numbers in the row of a table that begins with this name."""
    (cells,) = re.findall(rf"^\| {re.escape(name)} \|(.+)\|$", PAGE, re.MULTILINE)
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", cells)]


SERVER, WORKER = row("a server without models"), row("a worker that waits")


@pytest.mark.parametrize("servers", ["10", "100", "1,000"])
def test_large_fleets_are_small_ones_multiplied(servers: str) -> None:
    connections, transactions, processors, gets, gigabytes, series = row(servers)
    number = int(servers.replace(",", ""))

    def of_all(column: int) -> float:
        return number * SERVER[column] + number / SERVERS_OF_A_WORKER * WORKER[column]

    assert connections == of_all(2)
    assert transactions == pytest.approx(of_all(3), rel=0.02)
    assert processors == pytest.approx(of_all(4) / 1e3, rel=0.05) or processors == round(of_all(4) / 1e3, 2)
    (gets_of_one,) = re.findall(r"reads it with (\d+) GETs", PAGE)
    assert gets == number * int(gets_of_one)
    (megabytes,) = re.findall(r"a promotion of a file of (\d+) MB", PAGE)
    assert gigabytes == number * int(megabytes) / 1e3
    (series_of_one,) = re.findall(r"of which about (\d+) come but once", PAGE)
    assert series == number * LOADED_VERSIONS * int(series_of_one)


def test_the_first_thing_to_give_out_does_so_where_it_is_said() -> None:
    ((servers, connections),) = re.findall(
        r"^\| about (\d+) servers \| PostgreSQL's (\d+) conn", PAGE, re.MULTILINE
    )
    taken = int(servers) * (SERVER[2] + WORKER[2] / SERVERS_OF_A_WORKER)
    assert taken == pytest.approx(int(connections), rel=0.05)
    assert taken <= int(connections)


def test_the_guide_says_of_the_database_what_was_measured() -> None:
    ((by_server, by_worker),) = re.findall(
        r"is asked (\S+) times a second by a server without anything to do, (\S+) times by such a worker",
        GUIDE,
    )
    assert [Decimal(by_server), Decimal(by_worker)] == [Decimal(str(SERVER[3])), Decimal(str(WORKER[3]))]
