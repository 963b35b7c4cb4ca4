"""Puts a short load on a model of a running octet, in steps of users, and shows what came of it.

It takes `--seconds` and two more for every step: about 80 s as it is. The load is sent by Locust, which is in an
environment of its own and has one processor.
"""

import argparse
import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.users.inputs import BINARY_ONLY, InputError, encode_binary, encode_json, make_inputs
from loadtests.users.page import HEAD, Load, cells, notes, render
from loadtests.users.results import Step

ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    """Runs the load; returns the exit status: 0 where every request was answered."""
    options = arguments().parse_args()
    headers = parsed_headers(options.header)
    with httpx.Client(base_url=options.url, headers=headers, timeout=30.0) as client:
        try:
            model = options.model or only_model(client)
            job, forms = plan(options, model, metadata(client, model), headers)
        except (InputError, httpx.HTTPError) as error:
            sys.stderr.write(f"loadtest: {options.url}: {error}\n")
            return 2
    steps = []
    sys.stdout.write(f"load on {model} at {options.url}: {', '.join(forms)}; users {options.users}\n")
    for raw in driven(options.python, job):
        step = Step.of(raw, model=model, rows=options.rows)
        steps.append(step)
        sys.stdout.write(
            f"  {step.form}, {step.users} users: {step.requests_per_s:,.0f} requests/s, {step.failures} failed\n"
        )
        sys.stdout.flush()
    date = time.strftime("%Y-%m-%d %H:%M:%S")
    load = Load(
        url=options.url, model=model, rows=options.rows, step_s=options.seconds, date=date, steps=tuple(steps)
    )
    options.out.write_text(render(load), encoding="utf-8")
    console = Console(width=120)
    console.print(table(load))
    for note in notes(load):
        console.print(note)
    console.print(f"report: {options.out.absolute()}")
    return 1 if any(step.failures for step in steps) else 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where octet runs")
    parser.add_argument("--model", default="", help="whom to ask; the only model there is where left out")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N", help="the steps")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each step is measured")
    parser.add_argument("--rows", type=int, default=1, help="rows of each request")
    parser.add_argument("--samples", type=Path, help="real rows, an .npz with an array for each input")
    parser.add_argument(
        "--shape", nargs="*", default=[], metavar="INPUT=1,128", help="of inputs with free dimensions"
    )
    parser.add_argument(
        "--header", nargs="*", default=[], metavar="NAME:VALUE", help="sent with every request, such as a key"
    )
    parser.add_argument("--out", type=Path, default=Path("loadtest.html"), help="the page that is written")
    parser.add_argument("--python", type=Path, required=True, help="of the environment that Locust is in")
    return parser


def parsed_headers(said: Sequence[str]) -> dict[str, str]:
    """Headers by name, of `NAME:VALUE` with or without spaces around either."""
    pairs = (header.partition(":") for header in said)
    return {name.strip(): value.strip() for name, _, value in pairs}


def only_model(client: httpx.Client) -> str:
    """The name of the model where there is one.

    Raises:
        InputError: there are more, or none.
    """
    # A key that may infer may ask this.
    versions = client.post("/v2/repository/index").raise_for_status().json()
    names = sorted({version["name"] for version in versions})
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none: upload one first"
        raise InputError(f"say whom to ask with MODEL=name; {there}.")
    return str(names[0])


def metadata(client: httpx.Client, model: str) -> list[dict[str, Any]]:
    """The model's inputs.

    Raises:
        InputError: it does not answer.
    """
    answer = client.get(f"/v2/models/{model}")
    if answer.status_code != httpx.codes.OK:
        raise InputError(f"{client.base_url} has no {model} to ask: {answer.text[:300]}")
    inputs: list[dict[str, Any]] = answer.json()["inputs"]
    return inputs


def plan(
    options: argparse.Namespace, model: str, inputs: list[dict[str, Any]], headers: dict[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """What `loadtests.users.drive` is to do, and the forms of its requests."""
    shapes = {}
    for given in options.shape:
        name, _, sizes = given.rpartition("=")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    samples = dict(np.load(options.samples)) if options.samples else {}
    datatypes = {entry["name"]: entry["datatype"] for entry in inputs}
    requests = make_inputs(inputs, rows=options.rows, shapes=shapes, samples=samples)
    encoders = {"json": encode_json, "binary": encode_binary}
    if BINARY_ONLY & set(datatypes.values()):
        del encoders["json"]
    bodies = {
        form: [_written(encode(request, datatypes)) for request in requests]
        for form, encode in encoders.items()
    }
    job = {
        "url": options.url.rstrip("/"),
        "path": f"/v2/models/{model}/infer",
        "metrics_url": f"{options.url.rstrip('/')}/metrics",
        "headers": headers,
        "step_s": options.seconds,
        "bodies": bodies,
        "steps": [{"form": form, "users": users} for form in encoders for users in options.users],
    }
    return job, list(encoders)


def _written(body: Any) -> dict[str, Any]:
    length = {} if body.json_bytes is None else {"Inference-Header-Content-Length": str(body.json_bytes)}
    return {"content": base64.b64encode(body.content).decode(), "headers": length}


def driven(python: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each step came to, as soon as it has ended."""
    command = [str(python), "-m", "loadtests.users.drive"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as load:
        if load.stdin is None or load.stdout is None:
            raise SystemExit("the load could not be started.")
        load.stdin.write(json.dumps(job))
        load.stdin.close()
        for line in load.stdout:
            yield json.loads(line)
    if load.returncode:
        raise SystemExit(f"the load ended with status {load.returncode}; its messages above say why.")


def table(load: Load) -> Table:
    """What is on the page, for the terminal."""
    shown = Table(title=f"{load.model} at {load.url}, rows in a request: {load.rows}", box=box.SIMPLE)
    for column in HEAD:
        shown.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for step in load.steps:
        shown.add_row(*cells(step))
    return shown


if __name__ == "__main__":
    sys.exit(main())
