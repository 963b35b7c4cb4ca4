"""The settings of other quantizers that octet is compared with."""

import enum


class Setting(enum.StrEnum):
    """One tool under one configuration, as its documentation recommends; the value is the table's label."""

    ORT_MINMAX = "onnxruntime S8S8 MinMax"
    ORT_ENTROPY = "onnxruntime S8S8 Entropy"
    ORT_PERCENTILE = "onnxruntime S8S8 Percentile"
    ORT_U8S8 = "onnxruntime U8S8 MinMax, MatMul only"
    """The setting that onnxruntime's guide names for transformers on x86."""
    NNCF_DEFAULT = "NNCF default"
    NNCF_TRANSFORMER = "NNCF model_type=TRANSFORMER"
    """SmoothQuant, and asymmetric activations outside of attention."""

    @property
    def distribution(self) -> str:
        """The package that must be installed for it."""
        return "nncf" if self in {Setting.NNCF_DEFAULT, Setting.NNCF_TRANSFORMER} else "onnxruntime"

    @property
    def ending(self) -> str:
        """The ending of the file it writes."""
        return ".xml" if self.distribution == "nncf" else ".onnx"
