import logging
import os
import time
from pathlib import Path

import pytest

from engines.options import BuildOptions
from service.catalog.catalog import Catalog, NewBuild
from service.storage.folder_store import FolderStore
from service.worker import Chore, tidy


def test_tidying_keeps_what_is_needed_and_what_is_young(tmp_path: Path) -> None:
    catalog, store = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}"), FolderStore(tmp_path / "store")
    needed, unneeded, young = (stored(store, content) for content in (b"needed", b"unneeded", b"young"))
    for digest in (needed, unneeded):
        then = time.time() - 7200
        os.utime(store.path(digest), (then, then))
    catalog.accept(
        NewBuild(model="m", fingerprint="f", options=BuildOptions(), files={"upload/model.onnx": needed})
    )
    tidy(catalog, store)
    assert set(store.digests(older_than_s=-60)) == {needed, young}
    catalog.close()


def test_a_chore_that_fails_is_noted_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    done: list[float] = []

    def work() -> None:
        done.append(time.monotonic())
        if len(done) == 1:
            raise OSError("the disk is away")

    chore = Chore(work, every_s=0.0)
    with caplog.at_level(logging.ERROR):
        chore.run_if_due()
    assert "a chore of the worker failed" in caplog.text
    chore.run_if_due()
    assert len(done) == 2


def test_a_chore_waits_until_it_is_due() -> None:
    done: list[int] = []
    chore = Chore(lambda: done.append(1), every_s=3600.0)
    chore.run_if_due()
    chore.run_if_due()
    assert done == [1]


def stored(store: FolderStore, content: bytes) -> str:
    with store.writer() as writer:
        writer.write(content)
        return writer.commit()
