"""A child of the supervisor: `python -m tests.unit.service.ending STATUSES`.

It takes the first line of the file STATUSES, and ends with that status; where there is none left it waits for a signal.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    statuses = Path(sys.argv[1])
    first, _, rest = statuses.read_text().partition("\n")
    if not first:
        signal.pause()
    statuses.write_text(rest)
    sys.exit(int(first))
