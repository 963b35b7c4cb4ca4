"""Content codings of bodies (RFC 9110, section 8.4): gzip, and deflate, which is zlib's format."""

import zlib
from collections.abc import Iterable

from service.errors import BadRequestError, TooLargeError
from service.protocol import Buffer

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
CODINGS = tuple(_WINDOW_BITS)
"""What is read and written, our favourite first."""

# The fastest: tensors hardly get smaller with more.
_LEVEL = 1
# Longer values are no client's; they are taken as accepting nothing.
_MOST_HEADER_BYTES = 256


def decompressed(body: Buffer, coding: bytes, limit_bytes: int) -> bytes:
    """The body as it was; it is never unpacked further than its limit.

    Raises:
        TooLargeError: it has more than `limit_bytes`.
        BadRequestError: it is cut off, damaged, or followed by something else.
    """
    stream, name = zlib.decompressobj(_WINDOW_BITS[coding]), coding.decode()
    try:
        # One more than allowed, so that too many are told from just as many.
        text = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise BadRequestError(f"the body is no {name} ({error}); send it whole, or uncompressed.") from error
    if len(text) > limit_bytes:
        raise TooLargeError(
            f"the body unpacks to more than {limit_bytes} bytes; "
            "send fewer rows in a request, or raise OCTET_MAX_BODY_BYTES."
        )
    if not stream.eof:
        raise BadRequestError(f"the {name} of the body is cut off; send it whole.")
    if stream.unused_data:
        raise BadRequestError(
            f"{len(stream.unused_data)} bytes follow the {name} of the body; compress the whole body as one."
        )
    return text


def compressed(pieces: Iterable[bytes | memoryview], coding: bytes) -> bytes:
    """All pieces together, compressed."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])


def accepted(header: bytes) -> bytes | None:
    """The coding that a client with this Accept-Encoding likes best of ours; None where it likes neither."""
    if len(header) > _MOST_HEADER_BYTES:
        return None
    quality: dict[bytes, float] = {}
    for part in header.lower().split(b","):
        name, _, parameter = part.partition(b";")
        quality[name.strip()] = _quality(parameter)
    return max(
        (coding for coding in CODINGS if quality.get(coding, 0.0) > 0.0),
        key=quality.__getitem__,
        default=None,
    )


def _quality(parameter: bytes) -> float:
    """The value of `q`; 1 where it is not said, 0 where it cannot be read."""
    name, _, value = parameter.partition(b"=")
    if name.strip() != b"q":
        return 1.0
    text = value.strip()
    return min(1.0, float(text)) if text.replace(b".", b"", 1).isdigit() else 0.0
