import re
from pathlib import Path

from service.app import create_app
from service.settings import Settings

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_every_metric_and_no_other(tmp_path: Path) -> None:
    (section,) = re.findall(r"^## Metrics\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_*]+)", row)}
    families = list(create_app(Settings(home=tmp_path)).state.octet.metrics.registry.collect())
    shown = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert {name for name in shown if not name.startswith("process_")} == documented - {"process_*"}


def test_every_metric_explains_itself(tmp_path: Path) -> None:
    families = create_app(Settings(home=tmp_path)).state.octet.metrics.registry.collect()
    assert all(family.documentation.endswith(".") for family in families)
