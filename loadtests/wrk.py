"""wrk, the load generator: one thread in C that costs little beside the server under test."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
wrk.method = "POST"
wrk.headers = {headers}
local file = io.open({body}, "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  io.write("\\n", string.format(
    '{{"requests": %d, "wall_us": %d, "errors": %d, "refused": %d, "p50_us": %d, "p99_us": %d}}',
    summary.requests, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.errors.status, latency:percentile(50), latency:percentile(99)), "\\n")
end
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run of wrk saw."""

    requests: int
    wall_s: float
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Requests answered in a second."""
        return self.requests / self.wall_s


def post(
    url: str,
    body: bytes,
    *,
    connections: int,
    seconds: int,
    headers: Mapping[str, str] | None = None,
    may_refuse: bool = False,
) -> Load:
    """Posts the body over and over on each connection, the next as soon as the last is answered.

    Raises:
        SystemExit: wrk is missing, or a request failed; with `may_refuse`, statuses that are errors are answers.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("this benchmark needs wrk: apt-get install wrk, or brew install wrk.")
    with tempfile.TemporaryDirectory(prefix="octet-wrk-") as folder:
        content, script = Path(folder) / "body", Path(folder) / "post.lua"
        content.write_bytes(body)
        pairs = {"Content-Type": "application/json", **(headers or {})}
        table = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in pairs.items())
        script.write_text(_SCRIPT.format(headers=f"{{{table}}}", body=json.dumps(str(content))))
        command = [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            url,
        ]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"wrk on {url}: {result.stderr.strip() or result.stdout.strip()}")
    seen = json.loads(result.stdout.strip().splitlines()[-1])
    if seen["errors"] or (seen["refused"] and not may_refuse) or not seen["requests"]:
        raise SystemExit(f"wrk on {url}: {seen}")
    return Load(
        requests=seen["requests"],
        wall_s=seen["wall_us"] / 1e6,
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
    )
