"""Trains the small networks of loadtests/models on the demo's digits (needs the extra `train`).

`python -m scripts.train_zoo vit depthwise` trains and exports both. They are the two kinds beside the demo's
residual network that quantizers break most often: a transformer, and depthwise convolutions under ReLU6.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.train_digits import TRAINING_ROWS, fit, strip_provenance

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits" / "digits.npz"
FOLDER = ROOT / "loadtests" / "models"
BATCH_ROWS = 32
# Share of right answers on the images kept aside below which nothing is exported.
LEAST_ACCURACY = 0.97


def enlarged(image: Tensor) -> Tensor:
    """[N, 1, 8, 8] with values 0 to 16, to [N, 1, 32, 32] with values 0 to 1."""
    return functional.interpolate(image / 16, scale_factor=4.0, mode="bilinear", align_corners=False)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, C] to the same."""
        rows, length, width = tokens.shape
        split = self.into(tokens).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return cast("Tensor", self.out(mixed.transpose(1, 2).reshape(rows, length, width)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_feed_forward = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, C] to the same."""
        tokens = tokens + self.attention(self.before_attention(tokens))
        return cast("Tensor", tokens + self.feed_forward(self.before_feed_forward(tokens)))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2021) with a class token over 8x8 overlapping patches; 0.2 million weights."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 8, stride=4, padding=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, 8, 8] to [N, 10] class scores."""
        patches = self.patches(enlarged(image)).flatten(2).transpose(1, 2)
        # shape[0], not len(): only the former stays a free dimension in the export.
        class_token = self.class_token.expand(image.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], 1) + self.positions
        return cast("Tensor", self.head(self.norm(self.blocks(tokens))[:, 0]))


def convolution(channels: tuple[int, int], kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(*channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels[1]),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018): expand fourfold, depthwise, project without activation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 4 * before
        self.residual = stride == 1 and before == after
        self.body = nn.Sequential(
            convolution((before, wide), 1),
            convolution((wide, wide), 3, stride=stride, groups=wide),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, before, H, W] to [N, after, H / stride, W / stride]."""
        changed = cast("Tensor", self.body(features))
        return features + changed if self.residual else changed


class DepthwiseClassifier(nn.Module):
    """A MobileNetV2 in small; 0.1 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution((1, 24), 3, stride=2),
            InvertedResidual(24, 24, 1),
            InvertedResidual(24, 40, 2),
            InvertedResidual(40, 40, 1),
            InvertedResidual(40, 64, 1),
            InvertedResidual(64, 64, 1),
            InvertedResidual(64, 64, 1),
            convolution((64, 192), 1),
        )
        self.head = nn.Linear(192, 10)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, 8, 8] to [N, 10] class scores."""
        return cast("Tensor", self.head(self.body(enlarged(image)).mean(dim=(2, 3))))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network of the zoo."""

    build: Callable[[], nn.Module]
    epochs: int
    # Peak of the one-cycle schedule.
    learning_rate: float
    opset: int


ZOO = {
    # Opset 17 has no Gelu: the activation arrives as the Erf formula, as in most files that users have.
    "vit": Recipe(build=VisionTransformer, epochs=65, learning_rate=1.5e-3, opset=17),
    "depthwise": Recipe(build=DepthwiseClassifier, epochs=30, learning_rate=4e-3, opset=18),
}


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """One-cycle AdamW with label smoothing, every epoch on newly distorted images."""
    model = recipe.build()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = recipe.epochs * math.ceil(len(images) / BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps, pct_start=0.15
    )
    fit(model, images, labels, optimizer=optimizer, schedule=schedule, epochs=recipe.epochs)
    return model.eval()


def export(model: nn.Module, example: Tensor, opset: int, target: Path) -> None:
    """Writes `model` with a free batch."""
    torch.onnx.export(
        model,
        (example,),
        target,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=opset,
        external_data=False,
        dynamo=True,
    )
    strip_provenance(target)


def main() -> None:
    """Trains the named networks, tests them on the images kept aside, and exports them."""
    with np.load(DIGITS) as digits:
        images = torch.from_numpy(digits["images"].astype(np.float32))
        labels = torch.from_numpy(digits["labels"].astype(np.int64))
    for name in sys.argv[1:] or ZOO:
        torch.manual_seed(8)
        recipe = ZOO[name]
        model = train(recipe, images[:TRAINING_ROWS], labels[:TRAINING_ROWS])
        with torch.inference_mode():
            right = (model(images[TRAINING_ROWS:]).argmax(1) == labels[TRAINING_ROWS:]).float().mean().item()
        print(f"{name}: top-1 on {len(labels) - TRAINING_ROWS} images kept aside: {right:.2%}")
        if right < LEAST_ACCURACY:
            sys.exit(f"{name}: {right:.2%} is below {LEAST_ACCURACY:.0%}; raise its epochs in ZOO.")
        target = FOLDER / f"{name}.onnx"
        export(model, images[:2], recipe.opset, target)
        print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
