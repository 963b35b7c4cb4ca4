import resource

import pytest

from service.server import connections_for, raise_open_files


@pytest.mark.parametrize(("files", "connections"), [(20_000, 19_488), (1024, 512), (256, 128)])
def test_some_files_are_kept_for_other_things_than_connections(files: int, connections: int) -> None:
    assert connections_for(files) == connections


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    earlier = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert raise_open_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, earlier)
