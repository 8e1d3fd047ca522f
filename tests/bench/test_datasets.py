"""The exporters write class folders that `msf train` and the evaluation read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bench.datasets import emoji, fashion_mnist
from msf_training.class_folders import load_class_folders
from msf_training.image_files import ImageFormat


def pack(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_skin_tones_are_variants_of_one_emoji_in_the_class_of_its_kind(tmp_path: Path) -> None:
    others = {chr(0x20000 + place): {"slug": slug} for place, (slug, _) in enumerate(emoji.STARTS)}
    hands = {"\U0001f44b": {"slug": "waving_hand"}, "\U0001f91a": {"slug": "raised_back_of_hand"}}
    order = [slug for slug, _ in emoji.STARTS].index("waving_hand")
    entries = dict([*list(others.items())[:order], *hands.items(), *list(others.items())[order + 1 :]])
    pack(tmp_path / "unicode-emoji-json-1.0.0.tgz", {"data-by-emoji.json": json.dumps(entries).encode()})
    images = {"assets/1f44b.webp": b"a", "assets/1f44b-1f3fb.webp": b"b", "assets/1f91a.webp": b"c", "README.md": b""}
    pack(tmp_path / "lobehub-fluent-emoji-3d-1.0.0.tgz", images)
    assert emoji.write_class_folders(tmp_path, tmp_path / "out") == 3
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.webp")}
    names = json.loads((tmp_path / "out/names.json").read_text())
    assert (names["1f44b"], names["1f91a"]) == ("waving hand", "raised back of hand")
    assert files == {"hand/1f44b--1f44b.webp", "hand/1f44b--1f44b-1f3fb.webp", "hand/1f91a--1f91a.webp"}


def test_missing_emoji_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make data-emoji"):
        emoji.write_class_folders(tmp_path, tmp_path / "out")


def test_fashion_mnist_keeps_its_pixels_padded(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        for name, header_size, content in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            with gzip.open(source / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header_size) + content.tobytes())
    assert fashion_mnist.write_class_folders(source, tmp_path / "out") == 40
    for split in ("train", "test"):
        data = load_class_folders(tmp_path / "out" / split, tmp_path / f"{split}.npy", ImageFormat(32, 1, "black"))
        assert data.labels == tuple(sorted(fashion_mnist.CLASSES))
        coats = data.train.images[data.train.labels == data.labels.index("coat")].numpy()
        padded = np.pad(pixels[labels == fashion_mnist.CLASSES.index("coat")], ((0, 0), (2, 2), (2, 2)))
        assert (coats[:, 0] == padded).all()


def test_missing_fashion_mnist_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`make data` fetches it"):
        fashion_mnist.write_class_folders(tmp_path, tmp_path / "out")
