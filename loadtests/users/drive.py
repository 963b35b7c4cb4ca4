"""Sends the load, with Locust in an environment of its own: `python -m loadtests.users.drive < job.json`.

The job is a `Job` of `loadtests.users.plan` as JSON. Every step is printed as one line of JSON when it ends. Nothing
but Locust and the standard library is imported.
"""

import base64
import itertools
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import gevent
from locust import constant, task
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment

# Not counted: connections are made, and the server settles.
_WARM_UP_S = 1.0


def main() -> None:
    """Runs every step of the job."""
    job = json.load(sys.stdin)
    for step in job["steps"]:
        sys.stdout.write(json.dumps(run(job, step)) + "\n")
        sys.stdout.flush()


def run(job: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """One step: so many users, each of whom asks again once it is answered."""
    environment = Environment(user_classes=[user_class(job, step["form"])], reset_stats=False)
    answers: list[tuple[float, float, str | None]] = []

    def note(*, response_time: float, exception: Exception | None, start_time: float, **_: Any) -> None:
        answers.append((start_time, response_time, None if exception is None else str(exception)[:200]))

    environment.events.request.add_listener(note)
    runner = environment.create_local_runner()
    runner.start(step["users"], spawn_rate=step["users"])
    gevent.sleep(_WARM_UP_S)
    before, started_s, cpu_s = scraped(job["metrics_url"]), time.time(), time.process_time()
    gevent.sleep(job["step_s"])
    ended_s, cpu_s = time.time(), time.process_time() - cpu_s
    after = scraped(job["metrics_url"])
    runner.quit()
    counted = [
        answer for answer in answers if started_s <= answer[0] and answer[0] + answer[1] / 1e3 <= ended_s
    ]
    return {
        **step,
        "wall_s": ended_s - started_s,
        "client_cpu_s": cpu_s,
        "ended_s": [round(start_s + ms / 1e3 - started_s, 4) for start_s, ms, _ in counted],
        "latency_ms": [round(ms, 4) for _, ms, _ in counted],
        "failures": [error for _, _, error in counted if error is not None],
        "metrics": None if before is None or after is None else [before, after],
    }


def user_class(job: dict[str, Any], form: str) -> type[FastHttpUser]:
    """Users that send the bodies of one form in turn."""
    bodies: Iterator[tuple[bytes, dict[str, str]]] = itertools.cycle(
        [
            (base64.b64decode(body["content"]), {**job["headers"], **body["headers"]})
            for body in job["bodies"][form]
        ]
    )

    class User(FastHttpUser):  # type: ignore[misc] # locust is not installed where types are checked
        host = job["url"]
        wait_time = constant(0)
        # Refusals are results here, not to be tried again.
        max_retries = 0

        @task  # type: ignore[untyped-decorator] # as above
        def infer(self) -> None:
            content, headers = next(bodies)
            self.client.post(job["path"], data=content, headers=headers, name=form)

    return User


def scraped(url: str) -> str | None:
    """The server's metrics; None where there are none to be had."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return None


if __name__ == "__main__":
    main()
