"""Writes the data of examples/digits from scikit-learn's UCI optical digits (needs the extra `train`).

digits.npz: 1,797 images of 8x8 pixels, values 0 to 16, with their labels, in a fixed shuffled order: the
first 1,197 are for training and calibration, the last 600 are kept aside.
samples.npz: the first 256 as the model's input `image`, what a user would upload.
request.json: the first image kept aside, as a body for the inference endpoint.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent.parent / "examples" / "digits"
TRAINING_ROWS = 1197
SAMPLE_ROWS = 256


def main() -> None:
    """Writes the three files."""
    digits = load_digits()
    order = np.random.default_rng(1797).permutation(len(digits.target))
    images = digits.images[order].astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = digits.target[order].astype(np.uint8)
    np.savez_compressed(FOLDER / "digits.npz", images=images, labels=labels)
    np.savez_compressed(FOLDER / "samples.npz", image=images[:SAMPLE_ROWS].astype(np.float32))
    pixels = images[TRAINING_ROWS].ravel().tolist()
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": pixels}
    (FOLDER / "request.json").write_text(json.dumps({"inputs": [tensor]}) + "\n")
    for name in ("digits.npz", "samples.npz", "request.json"):
        print(f"{name}: {(FOLDER / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
