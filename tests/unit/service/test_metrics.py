import pytest

from service.monitoring.metrics import Metrics, Outcome

LABELS = {"model": "m", "version": "2"}


def lines(metrics: Metrics, start: str) -> list[str]:
    return [line for line in metrics.scrape().decode().splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.SUCCESS),
        (400, Outcome.INVALID),
        (404, Outcome.INVALID),
        (413, Outcome.INVALID),
        (429, Outcome.REJECTED),
        (500, Outcome.FAILED),
        (503, Outcome.UNAVAILABLE),
        (504, Outcome.TIMEOUT),
    ],
)
def test_every_status_is_an_outcome(status: int, outcome: Outcome) -> None:
    assert Outcome.of_status(status) is outcome


def test_has_the_names_that_are_documented() -> None:
    metrics = Metrics()
    version = metrics.of("m", "2")
    version.requests[Outcome.SUCCESS].inc()
    version.rows.inc(3)
    version.request_seconds.observe(0.1)
    version.queue_seconds.observe(0.1)
    version.compute_seconds.observe(0.1)
    version.batch_rows.observe(3)
    metrics.watch("m", "2", queue_rows=lambda: 5, inflight=lambda: 6)
    metrics.watch_loaded(lambda: 7)
    metrics.quality("m", "2", sqnr_db=40.0, speedup=2.5, below_contract=True)
    sample = metrics.registry.get_sample_value
    assert sample("octet_requests_total", {**LABELS, "outcome": "success"}) == 1
    assert sample("octet_rows_total", LABELS) == 3
    for name in ("request_seconds", "queue_seconds", "compute_seconds", "batch_rows"):
        assert sample(f"octet_{name}_count", LABELS) == 1
    assert sample("octet_queue_rows", LABELS) == 5
    assert sample("octet_inflight_requests", LABELS) == 6
    assert sample("octet_models_loaded") == 7
    assert sample("octet_version_sqnr_db", LABELS) == 40
    assert sample("octet_version_speedup", LABELS) == 2.5
    assert sample("octet_version_below_contract", LABELS) == 1


def test_every_outcome_is_there_from_the_start_so_that_rates_are_right() -> None:
    metrics = Metrics()
    metrics.of("m", "2")
    outcomes = [line for line in lines(metrics, "octet_requests_total{") if 'model="m"' in line]
    assert len(outcomes) == len(Outcome)


def test_names_that_clients_make_up_are_no_labels() -> None:
    metrics = Metrics()
    metrics.unrouted(Outcome.INVALID)
    labels = {"model": "", "version": "", "outcome": "invalid"}
    assert metrics.registry.get_sample_value("octet_requests_total", labels) == 1


def test_an_unloaded_version_loses_its_gauges_and_keeps_its_counters() -> None:
    metrics = Metrics()
    metrics.of("m", "2").rows.inc(3)
    metrics.watch("m", "2", queue_rows=lambda: 5, inflight=lambda: 6)
    metrics.quality("m", "2", sqnr_db=40.0, speedup=None, below_contract=False)
    metrics.forget("m", "2")
    metrics.forget("m", "2")
    assert lines(metrics, "octet_queue_rows{") == []
    assert lines(metrics, "octet_version_sqnr_db{") == []
    assert lines(metrics, "octet_version_below_contract{") == []
    assert metrics.registry.get_sample_value("octet_rows_total", LABELS) == 3


def test_a_deleted_version_leaves_nothing() -> None:
    metrics = Metrics()
    metrics.of("m", "1").rows.inc(3)
    metrics.of("m", "2").rows.inc(3)
    metrics.retain({("m", "2")})
    assert all('version="1"' not in line for line in lines(metrics, "octet_"))
    assert metrics.registry.get_sample_value("octet_rows_total", LABELS) == 3


def test_a_version_that_is_loaded_again_counts_on() -> None:
    metrics = Metrics()
    metrics.of("m", "2").rows.inc(3)
    assert metrics.of("m", "2").rows.value == 3


def test_histograms_have_buckets_from_a_tenth_of_a_millisecond_to_minutes() -> None:
    metrics = Metrics()
    version = metrics.of("m", "2")
    for seconds in (0.00009, 0.0001, 0.003, 200.0):
        version.request_seconds.observe(seconds)
    version.batch_rows.observe(3)
    bucket = "octet_request_seconds_bucket"
    values = {line.split('le="')[1].split('"')[0]: float(line.split()[-1]) for line in lines(metrics, bucket)}
    assert (values["0.0001"], values["0.0025"], values["0.005"], values["100.0"]) == (2, 2, 3, 3)
    assert values["+Inf"] == 4
    assert len(values) == 20
    assert metrics.registry.get_sample_value("octet_request_seconds_sum", LABELS) == pytest.approx(200.00319)
    assert metrics.registry.get_sample_value("octet_batch_rows_bucket", LABELS | {"le": "2.0"}) == 0
    assert metrics.registry.get_sample_value("octet_batch_rows_bucket", LABELS | {"le": "4.0"}) == 1


def test_the_process_itself_is_measured() -> None:
    assert lines(Metrics(), "process_resident_memory_bytes")


def test_servers_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.of("m", "2").rows.inc()
    assert second.registry.get_sample_value("octet_rows_total", LABELS) is None
