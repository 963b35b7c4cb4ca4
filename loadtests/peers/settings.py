"""The settings of other quantizers that octet is compared with."""

import enum


class Setting(enum.StrEnum):
    """One tool under one configuration, as its documentation recommends; the value is the table's label."""

    ORT_MINMAX = "onnxruntime S8S8 MinMax"
    ORT_ENTROPY = "onnxruntime S8S8 Entropy"
    ORT_PERCENTILE = "onnxruntime S8S8 Percentile"
    ORT_SYMMETRIC = "onnxruntime S8S8 MinMax, symmetric"
    """The only one whose files TensorRT takes: no zero points, so half the grid is idle after a ReLU."""
    ORT_U8S8 = "onnxruntime U8S8 MinMax, MatMul only"
    """The setting that onnxruntime's guide names for transformers on x86."""
    NNCF_DEFAULT = "NNCF default"
    NNCF_TRANSFORMER = "NNCF model_type=TRANSFORMER"
    """SmoothQuant, and asymmetric activations."""
    NNCF_TRANSFORMER_SYMMETRIC = "NNCF model_type=TRANSFORMER, symmetric"

    @property
    def distribution(self) -> str:
        """The package that must be installed for it."""
        return "nncf" if self.name.startswith("NNCF") else "onnxruntime"

    @property
    def ending(self) -> str:
        """The ending of the file it writes."""
        return ".xml" if self.distribution == "nncf" else ".onnx"
