"""`helm test`: uploads the demo's classifier, waits until it is served, infers, and removes it again."""

import os
import sys
import time
import uuid
from pathlib import Path

import httpx

DIGITS = Path(os.environ.get("OCTET_DIGITS", "/usr/share/octet/digits"))
TIMEOUT_S = 270.0
_PAUSE_S = 1.0


def main() -> None:
    """Ends with an exit status other than 0 where something is wrong."""
    model = f"helm-test-{uuid.uuid4().hex[:12]}"
    key = os.environ.get("OCTET_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=os.environ["OCTET_ADDRESS"], headers=headers, timeout=60.0) as client:
        try:
            try_it(client, model)
        finally:
            client.delete(f"/v1/models/{model}")


def try_it(client: httpx.Client, model: str) -> None:
    """Uploads, waits and infers."""
    files = {
        "model": ("model.onnx", (DIGITS / "digits.onnx").read_bytes()),
        "samples": ("samples.npz", (DIGITS / "samples.npz").read_bytes()),
        "options": (None, b'{"effort": "fast"}', "application/json"),
    }
    answer = client.post(f"/v1/models/{model}/builds?force=true", files=files)
    checked(answer)
    build = answer.json()["id"]
    deadline = time.monotonic() + TIMEOUT_S
    # Behind one address there may be several servers, of which some see the version a little later.
    while client.get(f"/v2/models/{model}/ready").status_code != httpx.codes.OK:
        state = client.get(f"/v1/builds/{build}").json()
        if state["state"] in ("failed", "cancelled") or time.monotonic() > deadline:
            sys.exit(f"the model is not served; its build says: {state}")
        time.sleep(_PAUSE_S)
    answer = client.post(f"/v2/models/{model}/infer", content=(DIGITS / "request.json").read_bytes())
    checked(answer)
    sys.stdout.write(f"{model} was built, served and answers: {answer.text}\n")


def checked(answer: httpx.Response) -> None:
    """Ends with octet's own words where it refused."""
    if answer.is_error:
        sys.exit(f"{answer.request.method} {answer.request.url} got {answer.status_code}: {answer.text}")


if __name__ == "__main__":
    main()
