"""`octet migrate`: the tables of the catalog and of the queue, brought up to this release."""

import contextlib
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from service.builds.workflow import migrate_queue
from service.catalog.migration import HEAD, alone, migrate
from service.catalog.schema import create_engine, translated
from service.processes.locks import exclusive
from service.settings import Settings


def run(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Migrates what the settings name; does nothing where nothing is to be done.

    Raises:
        StartError: octet is running on the files that would be migrated.
        CatalogUnavailableError: the database does not answer.
    """
    engine = create_engine(settings.catalog_url)
    try:
        with translated(), _alone(settings, engine):
            migrate(engine)
            migrate_queue(settings.queue_url)
    finally:
        engine.dispose()
    say(f"octet's tables are at revision {HEAD}")


@contextlib.contextmanager
def _alone(settings: Settings, engine: sa.Engine) -> Iterator[None]:
    with alone(engine) if settings.shared else exclusive(settings.home / "octet.lock"):
        yield
