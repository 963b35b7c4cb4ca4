"""Element types: the protocol's names, and what they are in memory."""

import ml_dtypes
import numpy as np

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    # Every element is a `bytes`, of any length.
    "BYTES": np.dtype(np.object_),
}
"""The protocol's names of element types, and what they are in memory."""

NAMES: dict[np.dtype[np.generic], str] = {dtype: name for name, dtype in DATATYPES.items()}

JSONLESS = frozenset((DATATYPES["FP16"], DATATYPES["BF16"]))
"""Types that the protocol refuses in JSON, both ways; they travel as binary data."""


def datatype(dtype: np.dtype[np.generic]) -> str:
    """The protocol's name of an element type; types that it lacks keep numpy's name in capitals."""
    # Not as the default of `get`: numpy takes microseconds to make up the name of a type.
    return NAMES.get(dtype) or dtype.name.upper()
