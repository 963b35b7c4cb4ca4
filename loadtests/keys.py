"""What checking an API key costs a request: `python -m loadtests.keys`. Calls the gate alone, without HTTP."""

import tempfile
import timeit
from pathlib import Path
from typing import Any

from service.access.gate import Gate
from service.access.keys import Quotas, new_key
from service.access.refusals import Refusals
from service.access.scopes import Scope
from service.settings import Settings

KEYS = 1000
CALLS = 200_000
ROUNDS = 7
HEADERS = [
    (b"host", b"octet"),
    (b"user-agent", b"loadtest"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"300"),
]


def call_us(gate: Gate, key: str | None) -> float:
    """Microseconds of letting one request in; the best round."""
    sent = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    scope: dict[str, Any] = {"path": "/v2/models/m/infer", "headers": [*HEADERS, *sent], "client": None}
    rounds = timeit.repeat(lambda: gate.admit(scope, Scope.INFER), number=CALLS, repeat=ROUNDS)
    return min(rounds) / CALLS * 1e6


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Gate(Settings(home=Path(folder)), Refusals())
        print(f"{'no keys are asked for':30} {call_us(gate, None):5.2f} us")
        plain, limited = Quotas(), Quotas(requests_per_s=1e9)
        made = [new_key("x", [Scope.INFER], plain if number else limited) for number in range(KEYS)]
        gate.replace([key for _, key in made])
        print(f"{f'one of {KEYS} keys':30} {call_us(gate, made[1][0]):5.2f} us")
        print(f"{'with a limit of requests':30} {call_us(gate, made[0][0]):5.2f} us")


if __name__ == "__main__":
    main()
