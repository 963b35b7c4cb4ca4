import threading
from pathlib import Path

from engines.runtimes.engine_cache import EngineCache, noting_entries


def test_entries_that_are_written_or_read_are_noted_and_no_others(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.put("before", b"an engine")
    cache.put("unused", b"an engine")
    (tmp_path / "damaged.engine").write_bytes(b"x" * 50)
    with noting_entries() as entries:
        cache.put("new", b"an engine")
        assert cache.get("before") == b"an engine"
        assert cache.get("damaged") is None
        assert cache.get("missing") is None
    cache.get("unused")
    assert entries == {tmp_path / "new.engine", tmp_path / "before.engine"}


def test_entries_that_other_threads_use_are_not_noted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with noting_entries() as entries:
        thread = threading.Thread(target=cache.put, args=("theirs", b"an engine"))
        thread.start()
        thread.join()
    assert entries == set()
