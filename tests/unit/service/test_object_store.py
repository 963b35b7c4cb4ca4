import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug import Request, Response
from werkzeug.serving import make_server

from service.errors import StartError, StorageFullError, StoreUnavailableError
from service.storage import object_store
from service.storage.object_store import ObjectStore
from tests.s3 import BUCKET, s3_environment, s3_server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_RETRY_S", 0.5)


def test_a_store_that_is_away_is_said_to_be_and_the_upload_can_be_committed_later(
    impatient: None, tmp_path: Path
) -> None:
    with s3_server() as url, s3_environment(url):
        store = ObjectStore(BUCKET, "p", incoming=tmp_path)
    port = int(url.rpartition(":")[2])
    with store.writer() as writer:
        writer.write(b"abc")
        with pytest.raises(
            StoreUnavailableError, match=r"s3://octet-tests/p does not answer .*try again later"
        ):
            writer.commit()
        store.check()
        with s3_server(port):
            assert b"".join(store.read(writer.commit())) == b"abc"


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with s3_server() as url, s3_environment(url):
        with pytest.raises(
            StartError, match="no bucket at s3://nobody-made-it; create it, or change OCTET_STORE_URL"
        ):
            ObjectStore("nobody-made-it", "", incoming=tmp_path).check()
        ObjectStore(BUCKET, "", incoming=tmp_path).check()


@pytest.mark.parametrize(
    ("status", "code", "error", "sentence"),
    [
        (507, "XMinioStorageFull", StorageFullError, "is full .*free some space"),
        (400, "XMinioAdminBucketQuotaExceeded", StorageFullError, "is full .*free some space"),
        (403, "AccessDenied", StoreUnavailableError, "does not answer"),
    ],
)
def test_what_a_store_refuses_is_told_apart(
    impatient: None, tmp_path: Path, status: int, code: str, error: type[Exception], sentence: str
) -> None:
    with refusing(status, code) as url, s3_environment(url):
        store = ObjectStore(BUCKET, "", incoming=tmp_path)
        with store.writer() as writer:
            writer.write(b"abc")
            with pytest.raises(error, match=sentence):
                writer.commit()


def test_keys_that_are_refused_stop_the_start(impatient: None, tmp_path: Path) -> None:
    with (
        refusing(403, "AccessDenied") as url,
        s3_environment(url),
        pytest.raises(StartError, match=r"does not let octet in .*AWS_ACCESS_KEY_ID"),
    ):
        ObjectStore(BUCKET, "", incoming=tmp_path).check()


@contextlib.contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """A server that answers every request of S3 with this error; gives its address."""

    @Request.application
    def refuse(_: Request) -> Response:
        return Response(
            f"<Error><Code>{code}</Code><Message>no</Message></Error>", status, content_type="application/xml"
        )

    server = make_server("127.0.0.1", 0, refuse, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
