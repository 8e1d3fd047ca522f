"""Class folders are read as photo folders are: every depth, colour space, orientation and size, and damaged files."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from msf_training.class_folders import SKIPPED_FILE, ClassFolders, load_class_folders
from msf_training.image_files import ImageFormat, UnreadableImageError, read_image

COLOUR = ImageFormat(8, 3, "white")
GREY = ImageFormat(8, 1, "black")
RED = (220, 30, 20)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(folder: Path, content: bytes, image_format: ImageFormat = COLOUR) -> NDArray[np.uint8]:
    file = folder / "image.png"  # the content decides, not the suffix
    file.write_bytes(content)
    return read_image(file, image_format)


def ramp(dtype: type[np.generic], white: float) -> Image.Image:
    """Return an 8x8 image with four levels, a third of the range apart, in columns of two."""
    levels = np.repeat(np.array([0, 1 / 3, 2 / 3, 1]) * white, 2)
    return Image.fromarray(np.tile(levels, (8, 1)).astype(dtype))


@pytest.mark.parametrize(
    "content",
    [
        encoded(ramp(np.uint8, 255), "PNG"),
        encoded(ramp(np.uint16, 65535), "PNG"),
        encoded(ramp(np.uint16, 65535), "TIFF"),
        encoded(ramp(np.uint16, 65535), "PPM"),
        encoded(ramp(np.uint16, 65535), "JPEG2000"),
        encoded(ramp(np.int32, 65535), "TIFF"),
        encoded(ramp(np.float32, 1), "TIFF"),
        b"P5 8 8 65535\n" + np.asarray(ramp(np.uint16, 65535)).astype(">u2").tobytes(),
    ],
    ids=["8 bits", "16-bit PNG", "16-bit TIFF", "16-bit PGM", "JPEG 2000", "32-bit TIFF", "float TIFF", "big-endian"],
)
@pytest.mark.parametrize("image_format", [COLOUR, GREY])
def test_grey_levels_survive_every_depth(content: bytes, image_format: ImageFormat, tmp_path: Path) -> None:
    image = pixels(tmp_path, content, image_format)
    assert image.shape == (image_format.channels, 8, 8)
    assert (np.abs(image[:, :, ::2].astype(int) - [0, 85, 170, 255]) <= 1).all()


def palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGB", (20, 12), RED), kind, **options)
        for kind, options in (
            ("PNG", {}),
            ("JPEG", {"quality": 95}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
            ("GIF", {}),
            ("TIFF", {}),
            ("AVIF", {"quality": 95}),
            ("JPEG2000", {}),
            ("PPM", {}),
            ("TGA", {}),
        )
    ]
    + [
        encoded(Image.new("CMYK", (9, 9), (0, 220, 232, 35)), "JPEG", quality=95),
        encoded(Image.new("CMYK", (9, 9), (0, 220, 232, 35)), "TIFF"),
        encoded(palette(Image.new("RGB", (9, 9), RED)), "PNG"),
        encoded(Image.new("RGBA", (9, 9), (*RED, 255)), "PNG"),
        encoded(Image.new("RGB", (9, 9), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")]),
        encoded(Image.new("RGB", (9, 9), RED), "PNG", icc_profile=b"no profile"),
        encoded(Image.new("RGB", (9, 9), RED), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        encoded(
            Image.new("RGB", (9, 9), RED),
            "PNG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
    ],
)
def test_a_colour_is_the_same_in_every_format(content: bytes, tmp_path: Path) -> None:
    image = pixels(tmp_path, content)
    assert (np.abs(image.transpose(1, 2, 0).astype(int) - RED) <= 4).all()


def transparent(mode: str, **options: object) -> bytes:
    return encoded(Image.new(mode, (9, 9), 0), "PNG", **options)


@pytest.mark.parametrize(
    "content",
    [
        transparent("RGBA"),
        transparent("LA"),
        transparent("L", transparency=0),
        transparent("RGB", transparency=(0, 0, 0)),
        transparent("P", transparency=0),
        transparent("P", transparency=b"\0"),
    ],
)
def test_transparent_pixels_show_the_background(content: bytes, tmp_path: Path) -> None:
    assert (pixels(tmp_path, content) == 255).all()
    assert (pixels(tmp_path, content, GREY) == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photos_are_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.new("L", (32, 32))
    upright.paste(255, (0, 0, 16, 16))  # the top left quarter
    turns = Image.Transpose
    undo = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pixels(tmp_path, encoded(stored, kind, exif=exif), GREY)[0]
    assert image[1, 1] > 200
    assert max(image[1, 6], image[6, 1], image[6, 6]) < 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_huge_pictures_are_read_at_reduced_size(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow refuses twice as many
    content = encoded(Image.linear_gradient("L").resize((2000, 1000)), kind)
    column = pixels(tmp_path, content, GREY)[0, :, 4].astype(int)
    assert (np.abs(np.diff(column) - 32) <= 3).all()
    assert Image.MAX_IMAGE_PIXELS == 100_000


def damaged(write: Callable[[bytes], bytes], kind: str = "PNG") -> bytes:
    return write(encoded(Image.effect_noise((64, 64), 90), kind))


UNREADABLE = {
    "empty.png": b"",
    "truncated.png": damaged(lambda content: content[: len(content) // 2]),
    "truncated.jpg": damaged(lambda content: content[: len(content) // 2], "JPEG"),
    "truncated.gif": damaged(lambda content: content[:60], "GIF"),
    "head-only.webp": damaged(lambda content: content[:30], "WEBP"),
    "head-only.avif": damaged(lambda content: content[:40], "AVIF"),
    "head-only.tiff": damaged(lambda content: content[:20], "TIFF"),
    "zeros.bmp": bytes(100),
    "text.jpeg": b"<html>not found</html>",
    "._resource.png": b"\0\5\x16\7\0\2\0\0Mac OS X",
    "too-large.ppm": b"P6 40000 40000 255\n",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "negative.tiff": encoded(Image.fromarray(np.full((9, 9), -1, np.int32)), "TIFF"),
    "not-a-number.tiff": encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_reasons_say_what_is_wrong_without_the_path(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(UNREADABLE[name])
    with pytest.raises(UnreadableImageError, match=r"\S") as caught:
        read_image(tmp_path / name, COLOUR)
    assert str(tmp_path) not in str(caught.value)


def write_classes(folder: Path, num_images: int = 4) -> None:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(num_images):
            Image.new("RGB", (9, 9), RED).save(folder / label / f"{number}.tif")


def load(folder: Path, max_unreadable_percent: float = 80.0) -> ClassFolders:
    return load_class_folders(folder / "data", folder / "out/images.npy", GREY, 0, max_unreadable_percent)


def test_damaged_files_are_left_out_and_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    write_classes(data)
    for name, content in UNREADABLE.items():
        (data / "cat" / name).write_bytes(content)
    (data / "cat/dangling.png").symlink_to(tmp_path / "nowhere")
    (data / "dog/notes.txt").write_text("a dog")
    (data / "dog/photo.HEIC").write_bytes(b"?")
    (data / "__MACOSX").mkdir()
    (data / "stray.jpg").write_bytes(b"")
    (data / os.fsdecode(b"cat/caf\xe9.png")).write_bytes(encoded(Image.new("L", (9, 9), 255), "PNG"))
    with caplog.at_level(logging.INFO):
        folders = load(tmp_path)

    assert folders.labels == ("cat", "dog")
    assert folders.train.labels.tolist() == 5 * [0] + 4 * [1]
    assert len(folders.name_indices) == 9
    assert folders.train.images.float().mean((1, 2, 3)).min() > 50
    listed = (tmp_path / "out" / SKIPPED_FILE).read_text()
    assert listed.count("\n") == len(UNREADABLE) + 1
    assert all(listed.count(repr(f"cat/{name}")) == 1 for name in (*UNREADABLE, "dangling.png"))
    assert "read 9 of 24 image files" in caplog.text
    for line in (
        "dog has 2 other files, which are not used: 1 .heic, 1 .txt",
        "data has 1 other files, which are not used: 1 .jpg",
    ):
        assert line in caplog.text

    again = load(tmp_path)  # from the cache
    assert again.train.rows.tolist() == folders.train.rows.tolist()

    for name in (*UNREADABLE, "dangling.png"):
        (data / "cat" / name).unlink()
    load(tmp_path)
    assert not (tmp_path / "out" / SKIPPED_FILE).exists()


def test_a_training_on_mostly_damaged_files_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", 1)
    for number in range(3):
        (tmp_path / f"data/cat/{number}.png").write_bytes(b"")
    load(tmp_path, 60)
    with pytest.raises(ValueError, match=r"3 of 5 image files below .* cannot be read; allowed: 59 %"):
        load(tmp_path, 59)
    (tmp_path / "data/cat/0.tif").unlink()
    with pytest.raises(ValueError, match=r"cat holds no image that can be read; allowed: \.apng"):
        load(tmp_path)
