import pytest

from engines.options import BuildOptions
from service.catalog.catalog import Version
from service.serving.residency import (
    CALLED_IDLE_S,
    KEPT_VERSIONS,
    Key,
    MemoryLimits,
    Resident,
    evicted,
    idle,
    wanted,
)


def version(model: str, number: int, *, default: bool = False) -> Version:
    return Version(
        model=model,
        number=number,
        build_id=f"{model}{number}",
        files={},
        options=BuildOptions(),
        summary={},
        created_at=0.0,
        default=default,
    )


def none_failed(_: Key) -> bool:
    return False


def all_failed(_: Key) -> bool:
    return True


def test_nothing_published_wants_nothing() -> None:
    assert wanted([], {"m": 1}, none_failed) == []


def test_defaults_load_before_all_others() -> None:
    versions = [version("a", 1), version("a", 2, default=True), version("b", 1, default=True)]
    order = wanted(versions, {}, none_failed)
    assert set(order[:2]) == {("a", 2), ("b", 1)}
    assert order[2:] == [("a", 1)]


def test_keeps_the_newest_versions_besides_an_old_default() -> None:
    versions = [version("m", number, default=number == 1) for number in range(1, 9)]
    assert wanted(versions, {"m": 1}, none_failed) == [
        ("m", 1),
        *(("m", number) for number in range(8, 8 - KEPT_VERSIONS, -1)),
    ]


def test_what_answers_stays_until_the_new_default_can() -> None:
    versions = [version("m", number, default=number == 9) for number in range(1, 10)]
    assert ("m", 1) in wanted(versions, {"m": 1}, none_failed)
    assert ("m", 1) not in wanted(versions, {"m": 9}, none_failed)


def test_a_deleted_version_stands_in_until_the_default_loads_or_fails() -> None:
    versions = [version("m", 2, default=True)]
    assert wanted(versions, {"m": 1}, none_failed) == [("m", 2), ("m", 1)]
    assert wanted(versions, {"m": 1}, all_failed) == [("m", 2)]
    assert wanted(versions, {"m": 2}, none_failed) == [("m", 2)]


def test_a_published_version_stands_in_for_a_default_that_failed() -> None:
    versions = [version("m", number, default=number == 9) for number in range(1, 10)]
    assert ("m", 1) in wanted(versions, {"m": 1}, all_failed)


def test_a_model_without_versions_answers_no_more() -> None:
    assert wanted([version("other", 1, default=True)], {"m": 1}, none_failed) == [("other", 1)]


def resident(used_s: float, *, size: int = 10, busy: bool = False, called: bool = False) -> Resident:
    return Resident(memory_bytes=size, used_s=used_s, busy=busy, called=called)


A, B, C = ("a", 1), ("b", 1), ("c", 1)


@pytest.mark.parametrize(
    ("needed", "most", "kept", "expected"),
    [
        # There is room: nobody leaves.
        (0, 30, [], []),
        (5, 35, [], []),
        # The least recently used leave, and no more than it takes.
        (1, 30, [], [B]),
        (10, 30, [], [B]),
        (11, 30, [], [B, C]),
        (30, 30, [], [B, C, A]),
        # Not even an empty memory is enough.
        (31, 30, [], None),
        # Who has to stay, stays.
        (1, 30, [B], [C]),
        (11, 30, [B], [C, A]),
        (21, 30, [B], None),
        # More than fits is there already.
        (0, 15, [], [B, C]),
        (0, 15, [A], [B, C]),
        (0, 5, [A], None),
    ],
)
def test_the_least_recently_used_make_room(
    needed: int, most: int, kept: list[Key], expected: list[Key] | None
) -> None:
    residents = {A: resident(30), B: resident(10, busy=True), C: resident(20)}
    assert evicted(residents, needed, MemoryLimits(max_bytes=most), kept=kept) == expected


def test_nobody_is_idle_where_no_limit_was_set() -> None:
    residents = {A: resident(0), B: resident(0, called=True)}
    assert idle(residents, MemoryLimits(max_bytes=1), now_s=CALLED_IDLE_S) == {}
    # What only a request brought in does not stay for good.
    assert idle(residents, MemoryLimits(max_bytes=1), now_s=CALLED_IDLE_S + 1) == {B: CALLED_IDLE_S}


def test_who_was_used_lately_or_is_busy_is_not_idle() -> None:
    residents = {
        A: resident(0),
        B: resident(0, busy=True),
        C: resident(1),
        ("d", 1): resident(0, called=True),
    }
    limits = MemoryLimits(max_bytes=1, idle_s=100)
    assert idle(residents, limits, now_s=100) == {}
    assert idle(residents, limits, now_s=101) == {A: 100, ("d", 1): 100}
