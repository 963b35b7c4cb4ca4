"""What hostile clients cost the others: `python -m loadtests.hostile`.

Well-behaved clients load octet, as it is shipped, with a trivial model, alone and then beside each kind of hostile
client. The others' p99 may move by less than a factor of two, nothing of theirs may fail, and the server's memory
has to come back. Takes about three minutes. Needs wrk and, for all its idle connections, a limit of 12,000 open files.
"""

import argparse
import asyncio
import contextlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.frontend import octet_side, request_body
from loadtests.fronts.running import Side
from loadtests.serving import server_of
from loadtests.wrk import Load, post
from service.processes.memory import resident_bytes

CONNECTIONS = 16
MOST_FACTOR = 2.0
"""Most that the others' p99 may be against theirs without hostile clients."""
MOST_MEMORY = 1.1
"""Most resident memory afterwards, against before."""
_IDLE = 10_000
_LENGTH = 1 << 20
# From the end of an attack to the next load: the server looks at its connections once a second. More is given
# where its memory has not come back by then.
_RECOVERY_S = 3.0
_LONGEST_RECOVERY_S = 15.0
_SETTLING_S = 120.0


@dataclass(kw_only=True)
class Target:
    """The server under attack."""

    host: str
    port: int
    path: str
    body: bytes
    # Clients that have come to stay.
    settled: int = 0

    def head(self, **headers: str) -> bytes:
        """The head of an inference request with these headers, `_` for `-` in their names."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: octet"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, which ends without a goodbye."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def silent(target: Target) -> None:
    """Connects and says nothing, or half a head."""
    async with target.connected() as (reader, writer):
        if id(writer) % 2:
            writer.write(target.head()[:40])
        await reader.read()


async def endless_head(target: Target) -> None:
    """Sends 20 MB of headers."""
    async with target.connected() as (reader, writer):
        writer.write(target.head()[:-2])
        for _ in range(320):
            writer.write(b"X-Filler: " + b"a" * 65_526 + b"\r\n")
            await writer.drain()
        await reader.read()


async def slow_sender(target: Target) -> None:
    """Announces a megabyte and sends ten bytes a second of it."""
    async with target.connected() as (_, writer):
        writer.write(target.head(Content_Length=str(_LENGTH)))
        while not writer.transport.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.1)


async def slow_reader(target: Target) -> None:
    """Sends request after request and reads no answer."""
    async with target.connected() as (_, writer):
        # Nobody takes what the reader gets, so that it soon stops to read.
        whole = target.head(Content_Length=str(len(target.body))) + target.body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while True:
                    writer.write(whole * 100)
                    await writer.drain()


async def half_closed(target: Target) -> None:
    """Sends a request, closes its side and waits."""
    async with target.connected() as (reader, writer):
        writer.write(target.head(Content_Length=str(len(target.body))) + target.body)
        writer.write_eof()
        await reader.read()


async def leaving_in_the_body(target: Target) -> None:
    """Leaves in the middle of a body."""
    async with target.connected() as (_, writer):
        writer.write(target.head(Content_Length=str(_LENGTH)) + b"a" * (_LENGTH // 2))
        await writer.drain()
        await asyncio.sleep(0.01)


async def leaving_in_the_batch(target: Target) -> None:
    """Leaves right after a whole request."""
    async with target.connected() as (_, writer):
        writer.write(target.head(Content_Length=str(len(target.body))) + target.body)
        await writer.drain()
        await asyncio.sleep(0.001)


async def lying_about_length(target: Target) -> None:
    """Sends bodies that are longer or shorter than said, and chunks of no length."""
    sent = (
        target.head(Content_Length="10") + target.body,
        target.head(Content_Length=str(len(target.body) + 100)) + target.body,
        target.head(Transfer_Encoding="chunked") + b"zz\r\nbody\r\n",
        target.head(Transfer_Encoding="chunked", Content_Length="3") + b"3\r\nabc\r\n0\r\n\r\n",
    )
    for body in sent:
        async with target.connected() as (reader, writer):
            writer.write(body)
            with contextlib.suppress(TimeoutError):
                # Not wait_for: Python 3.11's loses a cancellation that comes as the time is over.
                async with asyncio.timeout(0.1):
                    await reader.read()


async def idle(target: Target) -> None:
    """Makes one request and stays."""
    async with target.connected() as (reader, writer):
        writer.write(target.head(Content_Length=str(len(target.body))) + target.body)
        await reader.read(1 << 16)
        target.settled += 1
        await reader.read()


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One kind of hostile client, and how many of them at the same time."""

    client: Callable[[Target], Awaitable[None]]
    clients: int
    # Rest between two attempts of one client: some are a flood otherwise, of which no server is free.
    rest_s: float = 0.05
    # Whether they come once and stay; what they cost is measured once all are there.
    stays: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return self.client.__name__.replace("_", " ")


ATTACKS = (
    Attack(client=silent, clients=200),
    Attack(client=endless_head, clients=2, rest_s=0.5),
    Attack(client=slow_sender, clients=200),
    Attack(client=slow_reader, clients=20, rest_s=1.0),
    Attack(client=half_closed, clients=20, rest_s=0.2),
    Attack(client=leaving_in_the_body, clients=5, rest_s=0.2),
    Attack(client=leaving_in_the_batch, clients=20, rest_s=0.2),
    Attack(client=lying_about_length, clients=20, rest_s=0.2),
    Attack(client=idle, clients=_IDLE, stays=True),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The well-behaved clients without and beside one kind of hostile ones."""

    name: str
    before: list[Load]
    during: list[Load]
    memory_before: int
    # The most that was seen.
    memory_during: int
    memory_after: int

    @property
    def factor(self) -> float:
        """How the others' p99 moved: medians of the rounds."""
        alone = statistics.median(load.p99_ms for load in self.before)
        return statistics.median(load.p99_ms for load in self.during) / alone


def main() -> int:
    """Runs the benchmark; returns 1 where a bar was missed."""
    options = arguments().parse_args()
    allow_files()
    with tempfile.TemporaryDirectory(prefix="octet-hostile-") as folder, octet_side(Path(folder)) as side:
        server = server_of(side.process)
        post(side.url, request_body(), connections=CONNECTIONS, seconds=2)
        results = []
        for attack in ATTACKS:
            print(f"{attack.clients} {attack.name}: {attack.client.__doc__}", flush=True)
            results.append(uvloop.run(endured(attack, side, server, options)))
    console = Console(width=110)
    console.print(table(results))
    worst = max(result.factor for result in results)
    growth = results[-1].memory_after / results[0].memory_before
    calm, lean = worst < MOST_FACTOR, growth <= MOST_MEMORY
    console.print(f"{said(calm)}  p99 beside hostile clients, below x{MOST_FACTOR:g}: x{worst:.2f}")
    console.print(f"{said(lean)}  memory afterwards, at most x{MOST_MEMORY:g}: x{growth:.2f}")
    return 0 if calm and lean else 1


def said(passed: bool) -> str:
    """For a bar."""
    return "pass" if passed else "MISS"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.hostile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="how long each load of a round takes")
    return parser


def allow_files() -> None:
    """Raises this process's limit of open files as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def endured(attack: Attack, side: Side, server: int, options: argparse.Namespace) -> Result:
    """Loads without and beside the attack, in turns: the attackers begin and end within each round."""
    where, body = urlsplit(side.url), request_body()
    target = Target(host=where.hostname or "", port=where.port or 0, path=where.path, body=body)

    async def load() -> Load:
        return await asyncio.to_thread(post, side.url, body, connections=CONNECTIONS, seconds=options.seconds)

    memory_before, memory_during = resident_bytes(server), 0
    before, during = [], []
    for _ in range(options.rounds):
        before.append(await load())
        attackers = [asyncio.create_task(over_and_over(attack, target)) for _ in range(attack.clients)]
        await there(attack, target)
        during.append(await load())
        memory_during = max(memory_during, resident_bytes(server))
        for attacker in attackers:
            attacker.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
        target.settled = 0
        await recovered(server, memory_before)
    return Result(
        name=f"{attack.clients} {attack.name}",
        before=before,
        during=during,
        memory_before=memory_before,
        memory_during=memory_during,
        memory_after=resident_bytes(server),
    )


async def there(attack: Attack, target: Target) -> None:
    """Returns once the attack is going on."""
    await asyncio.sleep(1)
    if attack.stays:
        async with asyncio.timeout(_SETTLING_S):
            while target.settled < attack.clients:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)


async def recovered(server: int, memory_before: int) -> None:
    """Gives the server time to part with what the attackers left."""
    started_s = time.monotonic()
    await asyncio.sleep(_RECOVERY_S)
    while resident_bytes(server) > memory_before:
        if time.monotonic() - started_s > _LONGEST_RECOVERY_S:
            return
        await asyncio.sleep(0.5)


async def over_and_over(attack: Attack, target: Target) -> None:
    """One attacker."""
    while True:
        # However a connection ends, and whether there is one, is of no interest: the server may refuse the hostile.
        with contextlib.suppress(OSError):
            await attack.client(target)
        await asyncio.sleep(attack.rest_s)


def table(results: list[Result]) -> Table:
    """One row an attack."""
    shown = Table(title=f"{CONNECTIONS} well-behaved clients without and beside hostile ones", box=box.SIMPLE)
    shown.add_column("")
    columns = (
        "requests/s\nwithout",
        "requests/s\nbeside",
        "p99 ms\nwithout",
        "p99 ms\nbeside",
        "p99\nfactor",
    )
    for column in (*columns, "memory MB\nbefore", "memory MB\nat most", "memory MB\nafter"):
        shown.add_column(column, justify="right")
    for result in results:
        rates = [statistics.median(load.per_s for load in loads) for loads in (result.before, result.during)]
        tails = [statistics.median(load.p99_ms for load in loads) for loads in (result.before, result.during)]
        memory = (result.memory_before, result.memory_during, result.memory_after)
        shown.add_row(
            result.name,
            *(f"{rate:,.0f}" for rate in rates),
            *(f"{tail:.2f}" for tail in tails),
            f"{result.factor:.2f}",
            *(f"{size / 1e6:.0f}" for size in memory),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
