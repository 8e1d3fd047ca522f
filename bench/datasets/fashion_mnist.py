"""Fashion-MNIST (Xiao et al., arXiv 1708.07747) as class folders, from the files of Debian's `dataset-fashion-mnist`.

    python -m bench.datasets.fashion_mnist --source data/usr --out data/fashion-mnist

writes `<out>/train/<class>/<number>.png` (60,000 images) and `<out>/test/...` (10,000), padded from 28x28 to 32x32.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def write_class_folders(source: Path, out: Path) -> int:
    """Write both splits and return the number of images. Raises FileNotFoundError if an IDX file is missing."""
    num_images = 0
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(source, f"{prefix}-images-idx3-ubyte.gz", header_size=16).reshape(-1, 28, 28)
        labels = _read_idx(source, f"{prefix}-labels-idx1-ubyte.gz", header_size=8)
        for name in CLASSES:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels, strict=True)):
            Image.fromarray(image).save(out / split / CLASSES[label] / f"{number:05d}.png")
        num_images += len(images)
    return num_images


def _read_idx(source: Path, name: str, *, header_size: int) -> NDArray[np.uint8]:
    files = sorted(source.rglob(name))
    if not files:
        raise FileNotFoundError(f"{source} holds no {name}; `make data` fetches it")
    with gzip.open(files[0], "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header_size)


def main() -> None:
    """Run the exporter."""
    parser = argparse.ArgumentParser(description="Write Fashion-MNIST as class folders.")
    parser.add_argument("--source", type=Path, required=True, help="folder below which the IDX files are")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        print(f"{write_class_folders(arguments.source, arguments.out):,} images below {arguments.out}")
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
