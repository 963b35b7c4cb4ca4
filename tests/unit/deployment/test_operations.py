"""docs/operations.md, held against the code."""

import re
from pathlib import Path

from engines.options import Batching
from service.app import create_app
from service.server import ENDING_S
from service.settings import DAY_S, GIB, MIB, Settings
from tests.unit.deployment.monitoring import ROOT, alerts, metrics_of

GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)


def test_every_alert_has_a_chapter_and_no_other_has() -> None:
    chapters = [heading for heading in HEADINGS if heading.startswith("Octet")]
    assert chapters == [alert["alert"] for alert in alerts()]


def test_variables_that_are_named_exist() -> None:
    known = {f"OCTET_{field.upper()}" for field in Settings.model_fields} | {"OCTET_PLAN_SECRET"}
    assert set(re.findall(r"OCTET_[A-Z_]+", GUIDE)) <= known


def test_metrics_that_are_named_exist(tmp_path: Path) -> None:
    families = create_app(Settings(home=tmp_path)).state.octet.metrics.registry.collect()
    shown = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert metrics_of(GUIDE) <= shown


def test_links_within_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\((\.\./[^)]+)\)", GUIDE)
    assert len(links) == 3
    for link in links:
        file, _, heading = link.partition("#")
        text = (ROOT / "docs" / file).resolve().read_text(encoding="utf-8")
        assert not heading or f"\n## {heading.replace('-', ' ')}\n" in text.lower()


def told_in(chapter: str) -> dict[str, str]:
    """What the table of a chapter says of each variable."""
    (text,) = re.findall(rf"^## {chapter}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `(OCTET_[A-Z_]+)`[^|]* \|$", text, re.MULTILINE)
    return {name: limit for limit, name in rows}


def test_times_of_retention_are_the_defaults(tmp_path: Path) -> None:
    settings, told = Settings(home=tmp_path), told_in("Retention")
    units_s = {"day": DAY_S, "hour": 3600.0, "minute": 60.0}
    assert settings.keep_versions is None
    assert told.pop("OCTET_KEEP_VERSIONS") == "for ever"
    names = {name for name in Settings.model_fields if name.startswith(("keep_", "sweep_"))} - {
        "keep_versions"
    }
    assert set(told) == {f"OCTET_{name.upper()}" for name in names}
    for name in names:
        number, unit = told[f"OCTET_{name.upper()}"].split(" ")
        assert getattr(settings, name) == int(number) * units_s[unit.rstrip("s")]


def test_limits_are_the_defaults(tmp_path: Path) -> None:
    settings, batching = Settings(home=tmp_path), Batching()
    assert told_in("Limits") == {
        "OCTET_MAX_UPLOAD_BYTES": f"{settings.max_upload_bytes // GIB} GiB",
        "OCTET_MAX_BODY_BYTES": f"{settings.max_body_bytes // MIB} MiB",
        "OCTET_BUILD_TIMEOUT_S": f"{settings.build_timeout_s / 3600:g} hour",
        "OCTET_BUILD_MEMORY_BYTES": f"{settings.build_memory_bytes // GIB} GiB",
        "OCTET_MAX_LOADED_BYTES": "half of what there is",
    }
    rows = f"{batching.max_batch_rows}, {batching.max_queue_rows}, {batching.timeout_ms // 1000} s"
    assert f"| {rows} |" in GUIDE


def test_the_time_to_end_is_that_of_the_code() -> None:
    request_s = Batching().timeout_ms / 1e3
    chapter = " ".join(GUIDE.split())
    assert f"A request takes {request_s:g} s at most" in chapter
    assert f"the end up to {ENDING_S:g} s more" in chapter
    assert f"waits less than {request_s + ENDING_S:g} s before SIGKILL" in chapter


def test_the_commands_of_backups_are_those_of_the_script() -> None:
    assert re.findall(r"-m scripts\.backup (\w+) /", GUIDE) == ["save", "restore"]
