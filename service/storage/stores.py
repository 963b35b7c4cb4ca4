"""The store that the settings name."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.folder_store import FolderStore
from service.storage.object_store import ObjectStore


def open_store(settings: Settings) -> BlobStore:
    """A local folder where there is no URL or it is file://, else S3.

    Raises:
        StartError: the bucket is not there, or the credentials do not open it.
    """
    if settings.store_url is None:
        return FolderStore(settings.home / "store")
    parts = urlsplit(settings.store_url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    store = ObjectStore(parts.netloc, parts.path.strip("/"), incoming=settings.home / "incoming")
    store.check()
    return store
