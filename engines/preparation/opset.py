"""The operator set that quantization needs."""

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
from onnx import helper

from engines.errors import UnsupportedModelError
from engines.model.checks import default_opset, one_sentence
from engines.model.external_weights import is_large, skeleton, with_weights

WANTED_OPSET = 21
"""The first opset whose QuantizeLinear takes FP16 scales and 4-bit types; TensorRT needs 19 for FP8."""
_ALSO_GOOD = (20, 19)
_LEAST_OPSET = 13
"""The first opset whose QuantizeLinear has an axis."""
_LEAST_IR_VERSION = 10
"""The IR version of opset 21; onnxruntime and OpenVINO read it."""


def upgrade_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model at opset 21, or as near to it as onnx's converter gets; one that is newer stays as it is.

    Raises:
        UnsupportedModelError: the model is older than opset 13 and the converter reaches none from there on.
    """
    if is_large(proto):
        return with_weights(upgrade_opset(skeleton(proto)), proto)
    opset = default_opset(proto)
    targets = [target for target in (WANTED_OPSET, *_ALSO_GOOD) if target > opset]
    if opset < _LEAST_OPSET:
        targets += range(_ALSO_GOOD[-1] - 1, _LEAST_OPSET - 1, -1)
    reason = ""
    for target in targets:
        try:
            return _converted(proto, target)
        except (
            onnx.version_converter.ConvertError,
            onnx.checker.ValidationError,
            onnx.shape_inference.InferenceError,
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
        ) as error:
            reason = reason or one_sentence(error)
    if opset < _LEAST_OPSET:
        raise UnsupportedModelError(
            f"the model has opset {opset} and cannot be converted to {_LEAST_OPSET} or later, which"
            f" quantization needs ({reason}): export it with opset 17 or later."
        )
    unchanged = onnx.ModelProto()
    unchanged.CopyFrom(proto)
    return unchanged


def set_ir_version(proto: onnx.ModelProto) -> None:
    """Declares the oldest IR version that has the model's opset and the runtimes' confidence."""
    proto.ir_version = max(_LEAST_IR_VERSION, helper.find_min_ir_version_for(proto.opset_import))


def _converted(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    converted = onnx.version_converter.convert_version(proto, target)
    set_ir_version(converted)
    # Where an adapter is missing or wrong, the converter may leave what the new opset does not allow.
    onnx.checker.check_model(converted)
    onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True)
    return converted
