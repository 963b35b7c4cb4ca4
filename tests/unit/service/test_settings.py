import os
from pathlib import Path

import pytest

from service.errors import StartError
from service.processes.processors import cgroup_quota, processor_budget
from service.settings import Settings, is_loopback


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OCTET_")]:
        monkeypatch.delenv(name)


def test_defaults_are_safe() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.no_auth) == ("127.0.0.1", 8000, False)
    assert settings.home == Path.home() / ".octet"
    assert settings.threads == processor_budget()


def test_environment_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTET_HOME", str(tmp_path))
    monkeypatch.setenv("OCTET_PORT", "9001")
    monkeypatch.setenv("OCTET_THREADS", "3")
    settings = Settings.load()
    assert (settings.home, settings.port, settings.threads) == (tmp_path, 9001, 3)


def test_a_relative_home_is_taken_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTET_HOME", "data")
    assert Settings.load().home == tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OCTET_STORE_URL", "gs://bucket"),
        ("OCTET_STORE_URL", "s3:///prefix"),
        ("OCTET_PORT", "0"),
        ("OCTET_PORT", "http"),
        ("OCTET_THREADS", "0"),
        ("OCTET_BUILD_TIMEOUT_S", "inf"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=rf"^{name} cannot be '?{value}'?: .*Change or unset"):
        Settings.load()


def test_more_lanes_than_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_THREADS", "2")
    monkeypatch.setenv("OCTET_LANES", "2")
    assert Settings.load().lanes == 2
    monkeypatch.setenv("OCTET_LANES", "3")
    with pytest.raises(StartError, match="OCTET_LANES is 3 and there are 2 threads"):
        Settings.load()


@pytest.mark.parametrize("key", ["short", "a" * 31, "a" * 40 + " ", "ä" * 40, "a" * 31 + "="])
def test_an_admin_key_that_could_be_guessed_or_not_be_sent_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OCTET_ADMIN_KEY", key)
    with pytest.raises(StartError, match=r"^OCTET_ADMIN_KEY cannot be what it is: .*32 or more") as caught:
        Settings.load()
    assert key not in str(caught.value)


def test_an_admin_key_is_shown_in_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_ADMIN_KEY", "a" * 32)
    settings = Settings.load()
    assert "a" * 32 not in repr(settings)
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "a" * 32
    monkeypatch.setenv("OCTET_ADMIN_KEY", "")
    assert Settings.load().admin_key is None


def test_a_key_for_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_ADMIN_KEY", "a" * 32)
    monkeypatch.setenv("OCTET_NO_AUTH", "1")
    with pytest.raises(StartError, match="nobody would be asked for it; keep one of both"):
        Settings.load()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_address_is_one_that_a_client_can_use(host: str, address: str) -> None:
    assert Settings(host=host).address == address


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def cgroup(root: Path, membership: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "quota"),
    [("150000 100000", 1.5), ("max 100000", None), ("", None), ("a b", None), ("1 0", None)],
)
def test_cgroup_v2_quota(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cgroup_quota(cgroup(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": text})) == quota


def test_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/b/cpu.max": "max 100000",
        "sys/fs/cgroup/a/cpu.max": "50000 100000",
        "sys/fs/cgroup/cpu.max": "400000 100000",
    }
    assert cgroup_quota(cgroup(tmp_path, "0::/a/b\n", files)) == 0.5


def test_a_path_of_the_host_falls_back_to_the_mount(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "200000 100000"}
    assert cgroup_quota(cgroup(tmp_path, "0::/kubepods/pod1/c1\n", files)) == 2.0


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_cgroup_v1_quota(tmp_path: Path, folder: str) -> None:
    files = {
        f"sys/fs/cgroup/{folder}/docker/c1/cpu.cfs_quota_us": "250000",
        f"sys/fs/cgroup/{folder}/docker/c1/cpu.cfs_period_us": "100000",
        f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "-1",
        f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000",
    }
    assert cgroup_quota(cgroup(tmp_path, "5:memory:/x\n4:cpu,cpuacct:/docker/c1\n", files)) == 2.5


def test_without_cgroups_the_affinity_mask_decides(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    assert processor_budget(tmp_path) == len(os.sched_getaffinity(0))


def test_a_part_of_a_processor_is_one_and_two_and_a_half_are_two(tmp_path: Path) -> None:
    few = cgroup(tmp_path / "few", "0::/\n", {"sys/fs/cgroup/cpu.max": "30000 100000"})
    more = cgroup(tmp_path / "more", "0::/\n", {"sys/fs/cgroup/cpu.max": "250000 100000"})
    assert processor_budget(few) == 1
    assert processor_budget(more) == min(2, len(os.sched_getaffinity(0)))


def test_a_shared_database_needs_a_shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_DATABASE_URL", "postgres://user:secret@host/octet")
    with pytest.raises(StartError, match=r"OCTET_STORE_URL is not: .*set OCTET_STORE_URL too"):
        Settings.load()
    monkeypatch.setenv("OCTET_STORE_URL", "s3://bucket/prefix")
    settings = Settings.load()
    assert settings.catalog_url == settings.queue_url == "postgresql+psycopg://user:secret@host/octet"
    assert settings.shared


def test_a_database_url_that_cannot_be_used_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_DATABASE_URL", "mysql://user:secret@host/octet")
    with pytest.raises(StartError, match=r"^OCTET_DATABASE_URL cannot be .*postgresql://") as caught:
        Settings.load()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("database", "worker", "expected"),
    [("", "", True), ("", "0", False), ("postgresql://h/d", "", False), ("postgresql://h/d", "1", True)],
)
def test_one_machine_builds_by_itself_and_a_fleet_has_workers(
    monkeypatch: pytest.MonkeyPatch, database: str, worker: str, expected: bool
) -> None:
    monkeypatch.setenv("OCTET_STORE_URL", "s3://bucket")
    monkeypatch.setenv("OCTET_DATABASE_URL", database)
    if worker:
        monkeypatch.setenv("OCTET_WORKER", worker)
    assert Settings.load().has_worker is expected
