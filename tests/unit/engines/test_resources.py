"""The processor budget and the cache folder that a build is given."""

import os
from pathlib import Path

import pytest

from engines import resources
from engines.errors import InvalidOptionsError
from engines.resources import Resources


def test_the_environment_says_how_many_processors_and_where_engines_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCTET_THREADS", "3")
    monkeypatch.setenv("OCTET_ENGINE_CACHE", str(tmp_path))
    assert resources.current() == Resources(threads=3, cache=tmp_path)


def test_without_a_word_all_processors_of_the_process_are_used_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OCTET_THREADS", raising=False)
    monkeypatch.delenv("OCTET_ENGINE_CACHE", raising=False)
    assert resources.current() == Resources(threads=len(os.sched_getaffinity(0)), cache=None)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_of_processors_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OCTET_THREADS", text)
    with pytest.raises(InvalidOptionsError, match=f"OCTET_THREADS is '{text}'; set it to a number"):
        resources.current()


def test_what_is_given_counts_more_than_the_environment_and_only_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OCTET_THREADS", "3")
    with resources.use(Resources(threads=1, cache=None)):
        assert resources.current().threads == 1
    assert resources.current().threads == 3
