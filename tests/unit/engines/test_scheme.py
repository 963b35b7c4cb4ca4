import pytest
from onnx import TensorProto

from engines.float8 import Float8Weights
from engines.formats import WeightBits
from engines.options import Precision
from engines.quantization.scheme import scheme_of


@pytest.mark.parametrize("bits", list(WeightBits))
def test_int8_has_as_wide_weights_as_asked_for(bits: WeightBits) -> None:
    scheme = scheme_of(Precision.INT8, weight_bits=bits)
    assert (scheme.element_type, scheme.weights) == (TensorProto.INT8, bits)
    assert scheme.activation_grid(12.7).scale == pytest.approx(0.1)


def test_fp8_is_e4m3_whatever_int8_weights_may_use() -> None:
    scheme = scheme_of(Precision.FP8, weight_bits=7)
    assert scheme.element_type == TensorProto.FLOAT8E4M3FN
    assert isinstance(scheme.weights, Float8Weights)
    assert scheme.activation_grid(44.8).scale == pytest.approx(0.1)


def test_fp32_has_no_scheme() -> None:
    with pytest.raises(ValueError, match="ask for int8 or fp8"):
        scheme_of(Precision.FP32)
