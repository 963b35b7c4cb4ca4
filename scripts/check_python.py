"""Says in one sentence what is missing before anything is installed; runs on any Python 3."""

import sys

if sys.version_info < (3, 11):
    found = ".".join(str(part) for part in sys.version_info[:3])
    sys.exit(
        f"octet needs Python 3.11 or later and found {found} ({sys.executable}); "
        "install a newer one and name it: make PYTHON=python3.12 <target>"
    )
try:
    import ensurepip
    import venv
except ImportError as error:
    sys.exit(
        f"octet needs Python's venv with pip, and {sys.executable} comes without {error.name}; "
        "on Debian and Ubuntu: apt install python3-venv"
    )
if not (hasattr(venv, "EnvBuilder") and hasattr(ensurepip, "version")):
    sys.exit(
        f"octet needs Python's venv with pip, and the one of {sys.executable} is incomplete; reinstall Python"
    )
