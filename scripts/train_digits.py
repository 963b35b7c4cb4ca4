"""Trains the demo's digit classifier and writes examples/digits/digits.onnx (needs the extra `train`).

A small residual network that scales the 8x8 image up to 32x32 itself, so that a request stays small (64
numbers) while the engine has real work to do: about 190 million multiplications a row.
"""

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parent.parent / "examples" / "digits"
TRAINING_ROWS = 1197
EPOCHS = 14
BATCH_ROWS = 32
CHANNELS = 64


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        return functional.relu(features + self.body(features))


class DigitClassifier(nn.Module):
    """[N, 1, 8, 8] with values 0 to 16, to [N, 10] class scores."""

    def __init__(self, channels: int = CHANNELS, enlargement: float = 4.0) -> None:
        super().__init__()
        self.enlargement = enlargement
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            Residual(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            Residual(channels),
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores of each row."""
        enlarged = functional.interpolate(
            image / 16, scale_factor=self.enlargement, mode="bilinear", align_corners=False
        )
        return cast("Tensor", self.head(self.body(enlarged).mean(dim=(2, 3))))


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled and moved a little, bilinearly."""
    rows = len(images)
    angle = torch.empty(rows).uniform_(-0.2, 0.2, generator=generator)
    scale = torch.empty(rows).uniform_(0.9, 1.1, generator=generator)
    shift = torch.empty(rows, 2).uniform_(-0.15, 0.15, generator=generator)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(model: DigitClassifier, images: Tensor, labels: Tensor, *, epochs: int = EPOCHS) -> DigitClassifier:
    """One-cycle AdamW with label smoothing."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * -(-len(images) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    fit(model, images, labels, optimizer=optimizer, schedule=schedule, epochs=epochs)
    return model.eval()


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epochs: int,
) -> None:
    """Trains with label smoothing, every epoch on newly distorted images in a new order."""
    generator = torch.Generator().manual_seed(8)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_ROWS):
            scores = model(augmented(images[rows], generator))
            loss = functional.cross_entropy(scores, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.3f}", flush=True)


def strip_provenance(path: Path) -> None:
    """Takes out the exporter's notes, which name files of the machine that it ran on."""
    exported = onnx.load(path)
    graph = exported.graph
    for item in (
        exported,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.save(exported, path)


def main() -> None:
    """Trains, tests on the images kept aside, and exports."""
    torch.manual_seed(8)
    with np.load(FOLDER / "digits.npz") as digits:
        images = torch.from_numpy(digits["images"].astype(np.float32))
        labels = torch.from_numpy(digits["labels"].astype(np.int64))
    model = train(DigitClassifier(), images[:TRAINING_ROWS], labels[:TRAINING_ROWS])
    with torch.inference_mode():
        right = (model(images[TRAINING_ROWS:]).argmax(1) == labels[TRAINING_ROWS:]).float().mean()
    target = FOLDER / "digits.onnx"
    torch.onnx.export(
        model,
        (images[:2],),
        target,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=20,
        external_data=False,
        dynamo=True,
    )
    strip_provenance(target)
    kept_aside = len(labels) - TRAINING_ROWS
    print(f"top-1 on {kept_aside} images kept aside: {right:.2%}; {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
