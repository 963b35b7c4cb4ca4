"""The Open Inference Protocol v2 (KServe) as a codec: bytes to checked tensors and back, without HTTP.

https://github.com/kserve/open-inference-protocol
"""

from service.protocol.datatypes import DATATYPES, datatype
from service.protocol.request import Buffer, InferenceRequest, decode
from service.protocol.response import InferenceResponse, encode
from service.protocol.signature import Signature, metadata

__all__ = [
    "DATATYPES",
    "Buffer",
    "InferenceRequest",
    "InferenceResponse",
    "Signature",
    "datatype",
    "decode",
    "encode",
    "metadata",
]
