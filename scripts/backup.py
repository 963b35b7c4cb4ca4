"""Saves what octet keeps, and restores it: `python -m scripts.backup save|restore FOLDER`, with octet's own variables.

octet may go on meanwhile: the database is saved first, and the blobs that it names never change. PostgreSQL is saved
with pg_dump and restored with pg_restore, of a release not older than the server's.
"""

import argparse
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from engines.errors import EngineError
from service.catalog.catalog import Catalog
from service.errors import ServiceError
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.folder_store import FolderStore
from service.storage.stores import open_store

POSTGRESQL, SQLITE, BLOBS = "database.dump", "catalog.db", "blobs"
"""Names in a backup."""


class BackupError(Exception):
    """A backup cannot be made or used."""


def save(settings: Settings, folder: Path) -> int:
    """Saves into an empty folder; returns the number of blobs.

    Raises:
        BackupError: the folder is not empty, or the database cannot be saved.
        InvalidArtifactError: a model was deleted meanwhile, or a blob is damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; a backup needs a folder of its own.")
    if settings.database_url:
        _run("pg_dump", "--format=custom", f"--file={folder / POSTGRESQL}", settings.database_url)
    else:
        _copy_file(settings.home / SQLITE, folder / SQLITE)
    # What was uploaded since is saved as well, and does no harm.
    return _copy(Catalog(settings.catalog_url).digests(), open_store(settings), FolderStore(folder / BLOBS))


def restore(settings: Settings, folder: Path) -> int:
    """Restores into an empty database and any store, while no octet runs on them; returns the number of blobs.

    Raises:
        BackupError: this is no backup of such a database, or the database is not empty.
        InvalidArtifactError: a blob of the backup is damaged.
    """
    kept = folder / (POSTGRESQL if settings.database_url else SQLITE)
    if not kept.is_file():
        raise BackupError(
            f"{folder} has no {kept.name}; name a folder that `save` wrote, with OCTET_DATABASE_URL "
            f"{'unset' if settings.database_url else 'set'} as it was then."
        )
    if not settings.database_url and (settings.home / SQLITE).exists():
        raise BackupError(f"{settings.home} has a catalog already; restore into an empty OCTET_HOME.")
    blobs = FolderStore(folder / BLOBS)
    # The database last: whoever reads it finds the blobs.
    count = _copy(list(blobs.digests(older_than_s=0.0)), blobs, open_store(settings))
    if settings.database_url:
        _run(
            "pg_restore",
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            f"--dbname={settings.database_url}",
            str(kept),
        )
    else:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy_file(kept, settings.home / SQLITE)
    return count


def _copy(digests: Iterable[str], source: BlobStore, target: BlobStore) -> int:
    count = 0
    for digest in digests:
        if not target.has(digest):
            with target.writer() as writer:
                for chunk in source.read(digest):
                    writer.write(chunk)
                writer.commit()
        count += 1
    return count


def _copy_file(source: Path, target: Path) -> None:
    """Copies a file of SQLite that others may be writing to."""
    if not source.is_file():
        raise BackupError(f"there is no {source}; set OCTET_HOME to the folder that octet uses.")
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BackupError(f"there is no {command[0]} here; install PostgreSQL's client programs.") from error
    if done.returncode:
        # Its first argument is not repeated: it may hold a password.
        raise BackupError(f"{command[0]} failed: {done.stderr.strip()}")


def main() -> int:
    """Runs one of both; returns the exit status."""
    parser = argparse.ArgumentParser(description="Saves what octet keeps, and restores it.")
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    told = parser.parse_args()
    try:
        count = (save if told.what == "save" else restore)(Settings.load(), told.folder)
    except (BackupError, ServiceError, EngineError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    print(f"{'saved' if told.what == 'save' else 'restored'} the database and {count} blobs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
