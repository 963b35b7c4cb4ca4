import asyncio
import time

from service.batching.device import Device, Turn


class Claimant:
    """A batcher that always has one more batch to run, and takes a lane whenever it is woken."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.runs = 0
        self.turn = Turn(wake=self.go)

    def go(self) -> None:
        if self.device.take(self.turn):
            self.runs += 1


def nothing() -> None:
    pass


async def test_lends_as_many_lanes_as_there_are() -> None:
    device, turns = Device(2), [Turn(wake=nothing) for _ in range(3)]
    assert [device.take(turn) for turn in turns] == [True, True, False]


async def test_wakes_who_was_refused_when_a_lane_comes_back() -> None:
    device = Device()
    first, second = Claimant(device), Claimant(device)
    first.go()
    second.go()
    assert (first.runs, second.runs) == (1, 0)
    device.give_back(first.turn, 1.0, wants=False)
    assert (first.runs, second.runs) == (1, 1)


async def test_shares_engine_time_rather_than_batches() -> None:
    device = Device()
    slow, quick = Claimant(device), Claimant(device)
    cost_s = {id(slow): 0.010, id(quick): 0.001}
    slow.go()
    quick.go()
    for _ in range(1100):
        holder = slow if slow.turn.held else quick
        device.give_back(holder.turn, cost_s[id(holder)], wants=True)
    assert 9 <= quick.runs / slow.runs <= 11


async def test_who_was_idle_goes_next_but_has_saved_nothing() -> None:
    device = Device()
    busy, late = Claimant(device), Claimant(device)
    busy.go()
    for _ in range(100):
        device.give_back(busy.turn, 1.0, wants=True)
    late.go()
    runs = busy.runs
    for _ in range(20):
        holder = busy if busy.turn.held else late
        device.give_back(holder.turn, 1.0, wants=True)
    assert 9 <= late.runs <= 11
    assert 9 <= busy.runs - runs <= 11


async def test_knows_who_has_the_device_to_itself() -> None:
    device = Device()
    first, second = Turn(wake=nothing), Turn(wake=nothing)
    device.take(first)
    assert device.has_all(first)
    device.take(second)
    assert not device.has_all(first)
    assert not device.has_all(second)


async def test_who_leaves_gives_its_lanes_to_those_who_wait() -> None:
    device = Device()
    gone, stays = Claimant(device), Claimant(device)
    gone.go()
    stays.go()
    device.leave(gone.turn)
    assert stays.runs == 1
    # Its engine comes back after all: the lane is not counted twice.
    device.give_back(gone.turn, 1.0, wants=False)
    assert not device.take(Turn(wake=nothing))


async def test_an_engine_that_does_not_come_back_does_not_hold_up_the_others_for_good() -> None:
    device = Device(patience_s=0.01)
    stuck, others = Claimant(device), [Claimant(device), Claimant(device)]
    stuck.go()
    for other in others:
        other.go()
    until_s = time.monotonic() + 10
    while not any(other.runs for other in others) and time.monotonic() < until_s:  # noqa: ASYNC110 - a timer acts
        await asyncio.sleep(0.001)
    running = next(other for other in others if other.turn.held)
    device.give_back(running.turn, 1.0, wants=False)
    assert [other.runs for other in others] == [1, 1]


async def test_a_lane_that_comes_back_late_takes_the_place_of_the_one_lent_for_it() -> None:
    device = Device(patience_s=0.01)
    stuck, other = Claimant(device), Claimant(device)
    stuck.go()
    other.go()
    until_s = time.monotonic() + 10
    while not other.runs and time.monotonic() < until_s:  # noqa: ASYNC110 - a timer acts
        await asyncio.sleep(0.001)
    device.give_back(stuck.turn, 1.0, wants=False)
    assert not device.take(Turn(wake=nothing))
    device.give_back(other.turn, 1.0, wants=False)
    assert device.take(Turn(wake=nothing))


async def test_an_engine_that_goes_on_batch_after_batch_is_not_taken_for_stuck() -> None:
    device = Device(patience_s=0.03)
    busy, other = Claimant(device), Claimant(device)
    busy.go()
    other.go()
    for _ in range(20):
        await asyncio.sleep(0.005)
        device.charge(busy.turn, 0.005)
    assert other.runs == 0
    assert not busy.turn.late
