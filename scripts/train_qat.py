"""Trains a digit classifier for few bits and writes examples/digits/*-3-bits.onnx (needs the extra `train`).

A smaller edition of the demo's network is trained in FP32. Then all its layers get quantizers of three
bits: weights with the codes -3 to 3 and one step per output channel, activations with the codes 0 to 7 (-3 to 3
where they may be negative) and one step per tensor. Two models come of it, written as symmetric INT8 Q/DQ ONNX:

    ptq-3-bits.onnx  the FP32 weights rounded, every step the one of least squared error: no training
    qat-3-bits.onnx  the same after more epochs with the quantizers in place, steps learned along with weights
                     (LSQ: Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153)

`python -m examples.qat` uploads both and compares them.
"""

import copy
import itertools
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # which registers the operators that are exported as Q/DQ
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines.formats import along, quantize
from scripts.train_digits import (
    BATCH_ROWS,
    FOLDER,
    TRAINING_ROWS,
    DigitClassifier,
    Residual,
    fit,
    strip_provenance,
    train,
)

QUANTIZED = torch.ops.quantized_decomposed

BITS = 3
CHANNELS = 16
ENLARGEMENT = 2.0
FP32_EPOCHS = 40
QAT_EPOCHS = 20
CALIBRATION_ROWS = 256
# Steps that are tried, as shares of the one at which nothing is clipped.
SHARES = np.linspace(0.1, 1.0, 46)


class Quantizer(nn.Module):
    """Rounds to multiples of a step; the gradient passes as if it had not (straight-through estimator)."""

    def __init__(self, step: NDArray[np.float32], low: int, high: int, axis: int | None) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.from_numpy(step))
        self.low, self.high, self.axis = low, high, axis
        # The step as a number, set for export: the rounding is then written as operators.
        self.exported: float | None = None

    def forward(self, values: Tensor) -> Tensor:
        """The same shape, on the grid."""
        step = self.step if self.axis is None else self.step.reshape(-1, *(1,) * (values.ndim - 1))
        if self.exported is not None:
            return self._operators(values, self.exported)
        # LSQ's gradient scale keeps the step from moving faster than the weights.
        factor = (values.numel() / self.step.numel() * self.high) ** -0.5
        step = (step - step * factor).detach() + step * factor
        scaled = torch.clamp(values / step, self.low, self.high)
        return (scaled + (scaled.round() - scaled).detach()) * step

    def _operators(self, values: Tensor, step: float) -> Tensor:
        """QuantizeLinear and DequantizeLinear with INT8, whose range is wider: a Clip in front keeps the codes few."""
        limits = (-128, 127, torch.int8)
        if self.axis is None:
            clipped = torch.clamp(values, self.low * step, self.high * step)
            codes = QUANTIZED.quantize_per_tensor(clipped, step, 0, *limits)
            return cast("Tensor", QUANTIZED.dequantize_per_tensor(codes, step, 0, *limits))
        zeros = torch.zeros(len(self.step), dtype=torch.int8)
        codes = QUANTIZED.quantize_per_channel(values, self.step, zeros, self.axis, *limits)
        return cast("Tensor", QUANTIZED.dequantize_per_channel(codes, self.step, zeros, self.axis, *limits))


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose operands are quantized."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, inputs: NDArray[np.float32]) -> None:
        super().__init__()
        self.layer = layer
        signed = bool((inputs < 0).any())
        low, high = (-(2 ** (BITS - 1)) + 1, 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
        self.of_inputs = Quantizer(best_steps(inputs, low, high, axis=None), low, high, None)
        weights = layer.weight.detach().numpy()
        high = 2 ** (BITS - 1) - 1
        self.of_weights = Quantizer(best_steps(weights, -high, high, axis=0), -high, high, 0)

    def forward(self, values: Tensor) -> Tensor:
        """The layer, of quantized operands."""
        values, weight = self.of_inputs(values), self.of_weights(self.layer.weight)
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(values, weight, self.layer.bias, padding=self.layer.padding)
        return nn.functional.linear(values, weight, self.layer.bias)


def best_steps(values: NDArray[np.float32], low: int, high: int, axis: int | None) -> NDArray[np.float32]:
    """Steps of least squared error, [] or one per index of `axis`, on octet's own grid."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    widest = np.abs(values).max(axis=others if axis is not None else None) / high
    errors = []
    for share in SHARES:
        step = np.asarray(widest * share, np.float32)
        spread = step if axis is None else along(step, axis, values.ndim)
        back = quantize(values, spread, low=low, high=high).astype(np.float32) * spread
        errors.append(((values - back) ** 2).sum(axis=others if axis is not None else None))
    return np.asarray(widest * SHARES[np.argmin(errors, axis=0)], np.float32)


def fused(model: DigitClassifier) -> DigitClassifier:
    """The same network with its batch normalisation folded into the convolutions."""
    model = copy.deepcopy(model).eval()
    for sequence in (model.body, *(part.body for part in model.body if isinstance(part, Residual))):
        layers = list(sequence)
        for place, (layer, norm) in enumerate(itertools.pairwise(layers)):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[place] = fuse_conv_bn_eval(layer, norm)
                sequence[place + 1] = nn.Identity()
    return model


def with_quantizers(model: DigitClassifier, images: Tensor) -> nn.Module:
    """The network with quantizers in front of every layer, their steps chosen on the images."""
    seen: dict[str, NDArray[np.float32]] = {}
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _layer, inputs, name=name: seen.update({name: inputs[0].numpy()})
        )
    with torch.inference_mode():
        model(images)
    for name, layer in layers.items():
        layer._forward_pre_hooks.clear()  # noqa: SLF001 # a hook's handle would have to be kept for each
        model.set_submodule(name, QuantizedLayer(layer, seen[name]))
    return model


def train_quantized(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """More epochs, with the quantizers in place."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    steps = QAT_EPOCHS * -(-len(images) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    fit(model, images, labels, optimizer=optimizer, schedule=schedule, epochs=QAT_EPOCHS)
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    with torch.inference_mode():
        return cast("float", (model.eval()(images).argmax(1) == labels).float().mean().item())


def export(model: nn.Module, example: Tensor, target: Path) -> None:
    """Writes `model` as Q/DQ ONNX with a free batch."""
    model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for part in list(model.modules()):
        if isinstance(part, QuantizedLayer):
            weights = part.of_weights
            part.layer.weight.copy_(weights(part.layer.weight))
            weights.exported, part.of_inputs.exported = 0.0, part.of_inputs.step.item()
    torch.onnx.export(
        model,
        (example,),
        target,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=20,
        external_data=False,
        dynamo=True,
    )
    strip_provenance(target)


def main() -> None:
    """Trains all three, tests them on the images kept aside, and exports the two that are quantized."""
    torch.manual_seed(8)
    with np.load(FOLDER / "digits.npz") as digits:
        images = torch.from_numpy(digits["images"].astype(np.float32))
        labels = torch.from_numpy(digits["labels"].astype(np.int64))
    known, kept = (
        (images[:TRAINING_ROWS], labels[:TRAINING_ROWS]),
        (
            images[TRAINING_ROWS:],
            labels[TRAINING_ROWS:],
        ),
    )
    fp32 = train(DigitClassifier(CHANNELS, ENLARGEMENT), *known, epochs=FP32_EPOCHS)
    print(f"FP32: top-1 on {len(kept[1])} images kept aside: {accuracy(fp32, *kept):.2%}")
    rounded = with_quantizers(fused(fp32), known[0][:CALIBRATION_ROWS])
    trained = train_quantized(copy.deepcopy(rounded), *known)
    for name, model in (("ptq", rounded), ("qat", trained)):
        target = FOLDER / f"{name}-{BITS}-bits.onnx"
        export(model, images[:2], target)
        print(f"{target.name}: {accuracy(model, *kept):.2%}; {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
