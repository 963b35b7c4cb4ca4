"""Plans are native code: only those that this installation wrote are read back."""

import stat
from pathlib import Path

import pytest

from engines.runtimes.tensorrt.plans import SECRET_VARIABLE, plan_cache


@pytest.fixture(autouse=True)
def _no_shared_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)


def written(folder: Path, key: str = "a", plan: bytes = b"a plan") -> Path:
    cache = plan_cache(folder, "gpu")
    assert cache is not None
    cache.put(key, plan)
    assert cache.get(key) == plan
    return folder / "gpu" / f"{key}.engine"


def read(folder: Path, key: str = "a") -> bytes | None:
    cache = plan_cache(folder, "gpu")
    return cache.get(key) if cache else None


def test_a_plan_is_read_back_by_another_process_of_this_installation(tmp_path: Path) -> None:
    written(tmp_path)
    assert read(tmp_path) == b"a plan"


def test_the_secret_is_this_users_alone_and_stays(tmp_path: Path) -> None:
    written(tmp_path)
    secret = tmp_path / "plan.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = secret.read_bytes()
    written(tmp_path, "b")
    assert secret.read_bytes() == before
    assert len(before) == 32
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["plan.secret"]


@pytest.mark.parametrize("place", [0, 31, 32, -1])
def test_a_plan_that_was_changed_is_not_read(tmp_path: Path, place: int) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert read(tmp_path) is None


def test_a_plan_that_was_moved_to_another_models_place_is_not_read(tmp_path: Path) -> None:
    written(tmp_path, "a").rename(tmp_path / "gpu" / "b.engine")
    assert read(tmp_path, "b") is None


def test_a_plan_of_another_installation_is_not_read(tmp_path: Path) -> None:
    theirs = written(tmp_path / "theirs", plan=b"malice")
    ours = written(tmp_path / "ours")
    ours.write_bytes(theirs.read_bytes())
    assert read(tmp_path / "ours") is None


def test_a_secret_that_machines_share_lets_them_share_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "of the fleet")
    written(tmp_path)
    assert not (tmp_path / "plan.secret").exists()
    assert read(tmp_path) == b"a plan"
    monkeypatch.setenv(SECRET_VARIABLE, "of another fleet")
    assert read(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_secret_keeps_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.secret").write_bytes(content)
    assert plan_cache(tmp_path, "gpu") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert plan_cache(tmp_path / "file", "gpu") is None
