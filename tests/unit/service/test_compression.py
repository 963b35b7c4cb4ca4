import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequestError, TooLargeError
from service.http.compression import CODINGS, accepted, compressed, decompressed


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(CODINGS))
def test_what_is_compressed_comes_back(pieces: list[bytes], coding: bytes) -> None:
    whole = b"".join(pieces)
    assert decompressed(compressed(pieces, coding), coding, len(whole)) == whole


def test_reads_and_writes_what_others_do() -> None:
    assert decompressed(gzip.compress(b"abc"), b"gzip", 10) == b"abc"
    assert decompressed(zlib.compress(b"abc"), b"deflate", 10) == b"abc"
    assert gzip.decompress(compressed([b"ab", b"c"], b"gzip")) == b"abc"
    assert zlib.decompress(compressed([b"ab", b"c"], b"deflate")) == b"abc"


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_may_unpack_to_its_limit_and_no_further(coding: bytes) -> None:
    packed = compressed([bytes(1000)], coding)
    assert len(decompressed(packed, coding, 1000)) == 1000
    with pytest.raises(TooLargeError, match="unpacks to more than 999 bytes"):
        decompressed(packed, coding, 999)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = compressed([bytes(50_000_000)], b"gzip")
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            decompressed(bomb, b"gzip", 10_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-3], "of the body is cut off; send it whole"),
        (lambda packed: b"", "of the body is cut off; send it whole"),
        (lambda packed: packed + b"xyz", "3 bytes follow the"),
        (lambda packed: packed + packed, "bytes follow the"),
        (lambda packed: b"{}" + packed, "the body is no"),
        (lambda packed: packed[:-6] + bytes(6), "the body is no"),
    ],
)
def test_a_damaged_body_is_refused(coding: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        decompressed(change(compressed([b"some text, some text"], coding)), coding, 1000)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br, zstd", b"gzip"),
        (b"deflate, gzip", b"gzip"),
        (b"gzip;q=0.5, Deflate;q=0.9", b"deflate"),
        (b"GZIP ; q=0.1", b"gzip"),
        (b"gzip;q=0", None),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip;q=nan", None),
        (b"br", None),
        (b"identity", None),
        (b"", None),
        (b",;,=", None),
        (b"gzip," + b"x" * 300, None),
    ],
)
def test_the_client_chooses_the_coding(header: bytes, coding: bytes | None) -> None:
    assert accepted(header) == coding
