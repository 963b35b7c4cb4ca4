"""What OpenVINO complains about, as people read it."""

import pytest

from engines.errors import CompileError
from engines.runtimes.openvino_messages import explain, translated

UNCONVERTED = """Exception from src/inference/src/cpp/core.cpp:84:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- ReduceSum-17 with a message:
Check '(supported_types.find(ov_input.get_element_type()) != supported_types.end())' failed at src/reduce.cpp:134:
While validating ONNX node '<Node(ReduceSum): p>':
Unsupported input type dynamic

-- STFT-17 with a message:
Check '(signal_param_shape.is_static() && signal_param_shape.size() == 3)' failed at src/stft.cpp:54:
While validating ONNX node '<Node(STFT): s>':
Shape of signal input must be static with the rank equal to 3.

Summary:
-- Conversion is failed for: ReduceSum-17, STFT-17

"""


def test_operators_that_cannot_be_converted_are_named_with_their_reason() -> None:
    assert explain(UNCONVERTED) == (
        "OpenVINO does not take STFT (Shape of signal input must be static with the rank equal to 3); "
        "export the model with other operators or shapes"
    )


def test_other_complaints_lose_their_source_lines() -> None:
    text = (
        "Exception from src/core.cpp:84:\nCheck 'a < b' failed at src/x.cpp:1:\nthe axis is out of range.\n"
    )
    assert explain(text) == "the axis is out of range"
    assert explain("Exception from src/core.cpp:84:\n") == "it gives no reason"


def test_an_error_is_a_sentence() -> None:
    with (
        pytest.raises(CompileError, match=r"^the model cannot be read: no\.$"),
        translated("the model cannot be read"),
    ):
        raise RuntimeError("no.\n")
