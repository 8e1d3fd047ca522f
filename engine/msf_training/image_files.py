"""One image file as training data: whatever a photo folder holds, as uint8 pixels of one size and channel count."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".tga"),
}
MAX_PIXELS = 500_000_000  # up to 2 GB of memory while a file is read
_OVERSAMPLING = 4  # an image is reduced to no less than this multiple of its final size before it is resampled


class UnreadableImageError(ValueError):
    """An image file cannot be used; the message gives the reason without the file's name."""


@dataclass(frozen=True)
class ImageFormat:
    """Size in pixels and number of channels that images are converted to; `background` lies under transparent ones."""

    size: int
    channels: int
    background: str


def read_image(path: Path, image_format: ImageFormat) -> NDArray[np.uint8]:
    """Return the largest centred square, upright, in sRGB and scaled, as (C, H, W); of an animation, the first frame.

    Raises UnreadableImageError.
    """
    try:
        if not path.stat().st_size:
            raise UnreadableImageError("the file is empty")
        with _without_pillow_limits(), Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableImageError(f"{file.width} x {file.height} pixels; allowed: {MAX_PIXELS:,} in total")
            return _pixels(file, image_format)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any class about damaged files
        reason = str(error).replace(repr(str(path)), "").strip(" :")
        raise UnreadableImageError(reason or type(error).__name__) from error


@contextmanager
def _without_pillow_limits() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which `MAX_PIXELS` replaces, and silence its warnings about damaged metadata."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pixels(file: Image.Image, image_format: ImageFormat) -> NDArray[np.uint8]:
    size = image_format.size
    file.draft(None, (_OVERSAMPLING * size, _OVERSAMPLING * size))  # JPEG is decoded at a half, a quarter or an eighth
    image = _upright(file)
    side = min(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    square = _to_rgba(image.crop((x, y, x + side, y + side)))
    if (factor := side // (_OVERSAMPLING * size)) > 1:
        square = square.reduce(factor)
    opaque = Image.new("RGBA", square.size, image_format.background)
    opaque.alpha_composite(square)
    scaled = opaque.convert("RGB" if image_format.channels == 3 else "L").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(scaled).reshape(size, size, image_format.channels).transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF data turn nothing."""
    with suppress(Exception):  # of any class, as with pixels; damaged pixels raise again when they are used
        return ImageOps.exif_transpose(image)
    return image


def _to_rgba(image: Image.Image) -> Image.Image:
    """Convert any mode to 8 bits per channel in sRGB with alpha. Raises UnreadableImageError."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bits(image))
    profile = image.info.get("icc_profile")
    if profile and image.mode in {"L", "RGB", "RGBA", "CMYK"}:
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        source = io.BytesIO(profile)
        with suppress(ImageCms.PyCMSError, OSError):  # a damaged profile, or one of another mode, converts nothing
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    return image.convert("RGBA")


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale the levels of a grey image of 16 bits, or of fractions in [0, 1]. Raises UnreadableImageError."""
    levels = np.asarray(image)
    is_fraction = image.mode == "F"
    white = 1 if is_fraction else 0xFFFF
    if not ((levels >= 0) & (levels <= white)).all():
        unit = "fractions outside [0, 1]" if is_fraction else "levels outside 16 bits"
        raise UnreadableImageError(f"{unit}; convert it to 8 or 16 bits")
    return np.asarray((levels * (255 / white)).round(), np.uint8)
