from pathlib import Path

import pytest

from service.errors import StartError
from service.processes.locks import exclusive
from tests.disks import filled


def test_one_holds_it_at_a_time_and_the_other_is_told_who(tmp_path: Path) -> None:
    path = tmp_path / "octet.lock"
    in_use = pytest.raises(StartError, match=r"in use by another octet, process \d+; stop")
    with exclusive(path), in_use, exclusive(path):
        pytest.fail("two hold it")
    with exclusive(path):
        pass


def test_on_a_full_disk_it_is_held_without_a_name(small: Path) -> None:
    path = small / "octet.lock"
    path.touch()
    in_use = pytest.raises(StartError, match="in use by another octet")
    with filled(small), exclusive(path), in_use, exclusive(path):
        pytest.fail("two hold it")
