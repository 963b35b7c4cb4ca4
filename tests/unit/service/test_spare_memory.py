"""When freed memory is given back, by made up sizes and a made up clock."""

from service.processes.spare_memory import LEAST_BYTES, SpareMemory

MIB = 1 << 20
BASE = 200 * MIB


def tries(memory: SpareMemory, sizes: dict[int, int], until_s: int, after: int | None = None) -> list[int]:
    """The seconds at which it was due, where the size is that of the last second in `sizes`."""
    due, size = [], BASE
    for second in range(until_s):
        size = sizes.get(second, size)
        if memory.due(size, float(second)):
            due.append(second)
            left = size if after is None else after
            memory.tried(size, left, float(second))
            size = left
    return due


def test_a_steady_process_is_left_alone() -> None:
    assert tries(SpareMemory(BASE), {5: BASE + LEAST_BYTES - 1, 9: BASE}, 1000) == []


def test_growth_is_given_back_after_ten_seconds_and_again_when_it_comes_again() -> None:
    memory = SpareMemory(BASE)
    assert tries(memory, {3: BASE + 80 * MIB, 50: BASE + 90 * MIB}, 200, after=BASE + MIB) == [13, 60]


def test_growth_that_passes_by_itself_costs_nothing() -> None:
    assert tries(SpareMemory(BASE), {3: BASE + 80 * MIB, 12: BASE}, 200) == []


def test_tries_that_free_nothing_come_at_growing_distances_and_end() -> None:
    assert tries(SpareMemory(BASE), {0: BASE + 80 * MIB}, 10_000) == [10, 30, 70, 150, 310, 630]


def test_growth_that_stayed_is_the_measure_of_what_comes_after() -> None:
    memory = SpareMemory(BASE)
    tries(memory, {0: BASE + 80 * MIB}, 1000)
    assert not any(memory.due(BASE + 90 * MIB, second) for second in range(1000, 2000))
    assert any(memory.due(BASE + 100 * MIB, second) for second in range(2000, 2020))
