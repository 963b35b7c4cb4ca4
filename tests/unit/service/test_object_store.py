import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest
from moto.server import MotoRequestHandler
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


@pytest.mark.parametrize("size_bytes", [0, 3, 4, 5, 12])
def test_a_blob_is_read_with_one_request_for_each_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(object_store, "_BLOCK_BYTES", 4)
    asked: list[str] = []
    with s3_server() as url, s3_environment(url):
        store = ObjectStore(BUCKET, "p", incoming=tmp_path)
        with store.writer() as writer:
            writer.write(bytes(range(size_bytes)))
            digest = writer.commit()
        monkeypatch.setattr(MotoRequestHandler, "log_request", lambda self, *_: asked.append(self.command))
        assert b"".join(store.read(digest)) == bytes(range(size_bytes))
    assert asked == ["GET"] * max(1, -(-size_bytes // 4))


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


def test_parts_of_a_large_file_that_a_full_store_took_are_given_back(impatient: None, tmp_path: Path) -> None:
    """What is in the store of an upload in parts that never ended is seen by nobody, and paid for."""
    seen: list[tuple[str, str]] = []
    with full_of_parts(seen) as url, s3_environment(url):
        store = ObjectStore(BUCKET, "", incoming=tmp_path)
        with store.writer() as writer:
            for _ in range(20):
                writer.write(bytes(1 << 20))
            with pytest.raises(StorageFullError, match=r"is full .*free some space"):
                writer.commit()
    assert seen[0] == ("POST", "uploads")
    # Parts that were on their way may come in after it.
    assert ("DELETE", "uploadId") in seen
    assert not list(tmp_path.iterdir())


def test_a_store_without_deletion_of_many_is_asked_for_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
    seen: list[tuple[str, str]] = []
    with full_of_parts(seen) as url, s3_environment(url):
        ObjectStore(BUCKET, "", incoming=tmp_path).delete(["sha256:" + letter * 64 for letter in "ab"])
    assert [method for method, _ in seen] == ["DELETE", "DELETE"]


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

    with answering(refuse) as url:
        yield url


@contextlib.contextmanager
def answering(application: WSGIApplication) -> Iterator[str]:
    """A server on loopback; gives its address."""
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def full_of_parts(seen: list[tuple[str, str]]) -> Iterator[str]:
    """A server that begins uploads in parts and has no room for any; notes method and what is asked of an object."""

    @Request.application
    def answer(request: Request) -> Response:
        request.get_data()
        seen.append((request.method, next(iter(request.args), "")))
        if request.method == "POST":
            started = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return Response(started, content_type="application/xml")
        if request.method == "PUT":
            return Response(
                "<Error><Code>XMinioStorageFull</Code></Error>", 507, content_type="application/xml"
            )
        return Response(status=204)

    with answering(answer) as url:
        yield url
