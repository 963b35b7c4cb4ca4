"""`make serve`: octet in the foreground, and three commands to try on it."""

import os
import sys
from pathlib import Path

from examples.running import Running, StartError, ended_by_signals, service

PORT = 8000
HOME = Path(".octet")


def main() -> int:
    """Runs until Ctrl-C; returns the exit status."""
    home = Path(os.environ.get("OCTET_HOME", HOME))
    port = int(os.environ.get("OCTET_PORT", PORT))
    try:
        with ended_by_signals(), service(home.absolute(), port=port) as octet:
            sys.stdout.write(instructions(octet))
            sys.stdout.flush()
            return octet.process.wait()
    except KeyboardInterrupt:
        sys.stdout.write("octet has stopped\n")
        return 0
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def instructions(octet: Running) -> str:
    """Where it runs, and the commands to paste into another terminal, in this folder."""
    digits = Path(__file__).parent.relative_to(Path.cwd()) / "digits"
    builds = f"{octet.address}/v1/models/digits/builds"
    return f"""\
octet is ready at {octet.address}; its log is {octet.log}, Ctrl-C stops it.
Try it from another terminal, in this folder:

  # upload a model with samples: answers with the build
  curl -sS -F model=@{digits}/digits.onnx -F samples=@{digits}/samples.npz {builds}

  # how the builds are doing
  curl -sS {octet.address}/v1/builds

  # ask the 8-bit engine which digit this is, once the build has succeeded
  curl -sS -d @{digits}/request.json {octet.address}/v2/models/digits/infer

"""


if __name__ == "__main__":
    sys.exit(main())
