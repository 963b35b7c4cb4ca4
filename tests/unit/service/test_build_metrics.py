from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from engines.options import BuildOptions
from service.catalog.catalog import Catalog, NewBuild
from service.monitoring.build_metrics import BuildCollector


def accept(catalog: Catalog, model: str) -> str:
    new = NewBuild(model=model, fingerprint=model, options=BuildOptions(), files={})
    return catalog.accept(new)[0].id


def test_counts_builds_by_outcome_and_phases_by_seconds(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    registry = CollectorRegistry()
    registry.register(BuildCollector(catalog))
    sample = registry.get_sample_value
    assert sample("octet_builds_total", {"outcome": "succeeded"}) == 0
    assert sample("octet_builds_queued") == 0
    good, bad, called_off = (accept(catalog, name) for name in "abc")
    assert sample("octet_builds_queued") == 3
    catalog.begin_phase(good, "compile", 0.5)
    catalog.finish_phase(good, "compile", seconds=2.0, files={})
    assert sample("octet_build_phase_seconds_count", {"phase": "compile"}) is None
    catalog.publish(good, files={}, summary={})
    catalog.fail(bad, error="no", code="build.calibration")
    catalog.cancel(called_off)
    for outcome in ("succeeded", "failed", "cancelled"):
        assert sample("octet_builds_total", {"outcome": outcome}) == 1
    assert sample("octet_builds_queued") == 0
    phase = {"phase": "compile"}
    assert sample("octet_build_phase_seconds_count", phase) == 1
    assert sample("octet_build_phase_seconds_sum", phase) == 2.0
    assert sample("octet_build_phase_seconds_bucket", {**phase, "le": "1.0"}) == 0
    assert sample("octet_build_phase_seconds_bucket", {**phase, "le": "2.5"}) == 1
    catalog.close()


def test_a_catalog_that_cannot_be_read_leaves_the_other_metrics_alone(tmp_path: Path) -> None:
    database = tmp_path / "catalog.db"
    catalog = Catalog(f"sqlite:///{database}")
    registry = CollectorRegistry()
    registry.register(BuildCollector(catalog))
    catalog.close()
    database.write_bytes(b"this is no database, " * 100)
    assert b"octet_builds_total" not in generate_latest(registry)
    catalog.close()
