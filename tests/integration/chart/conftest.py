import json
import subprocess
from typing import Any

import pytest

from tests.integration.chart.values import BAD, GOOD
from tests.integration.running import ROOT

PYTHON = ROOT / ".venv-chart" / "bin" / "python"
CHART = ROOT / "k8s" / "octet"


@pytest.fixture(scope="session")
def helm() -> dict[str, Any]:
    """What Helm makes of the chart with each set of values, and what it blames in it."""
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import helm_sdkpy"], check=False).returncode:
        pytest.skip("there is no Helm; make chart installs it, on Linux on x86-64")
    values = GOOD | {name: refused for name, (refused, _) in BAD.items()}
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "integration" / "chart" / "rendering.py", CHART],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
