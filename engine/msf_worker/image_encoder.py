"""Encoding of pixels as image files."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from msf_scheduler.jobs import JobSpec, OutputFormat, Provenance

PARAMETERS = "msf:parameters"  # the text chunk's keyword
MAX_QUALITY = 100
_OPTIONS: dict[OutputFormat, dict[str, object]] = {
    "png": {"compress_level": 4},
    "webp": {"lossless": True, "method": 2},
    "jpeg": {"quality": 92},
}


def runtime_fingerprint(plans: str) -> str:
    """Return the SHA-256 of all that an image's bytes depend on: the plans' fingerprint and the encoders' versions."""
    codecs = (f"{name} {features.version(name)}" for name in ("pil", "zlib", "libjpeg_turbo", "webp"))
    return hashlib.sha256("\n".join((plans, *codecs)).encode()).hexdigest()


def encode_image(pixels: NDArray[np.uint8], spec: JobSpec, *, index: int, provenance: Provenance) -> bytes:
    """Encode (H, W, 1 | 3 | 4) uint8 in the job's format.

    The text chunk `PARAMETERS` of a PNG has all that is needed to regenerate it, and nothing that varies.
    """
    return _encode(pixels, spec, _text_chunks(spec, index, provenance))


def encode_preview(pixels: NDArray[np.uint8], spec: JobSpec) -> bytes:
    """Encode a preview in the job's format; it has no metadata, since it cannot be regenerated."""
    return _encode(pixels, spec, PngInfo())


def _encode(pixels: NDArray[np.uint8], spec: JobSpec, text_chunks: PngInfo) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    options = dict(_OPTIONS[spec.output_format])
    if spec.output_compression is not None:
        options["quality"] = spec.output_compression
        options["lossless"] = spec.output_compression == MAX_QUALITY
    if spec.output_format == "png":
        options["pnginfo"] = text_chunks
    elif spec.output_format == "jpeg" and image.mode == "RGBA":
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, format=spec.output_format, **options)
    return file.getvalue()


def _text_chunks(spec: JobSpec, index: int, provenance: Provenance) -> PngInfo:
    parameters = {
        "model": spec.model,
        "version": spec.version,
        "label": spec.label,
        "seed": spec.seed,
        "index": index,
        "num_steps": spec.num_steps,
        "guidance_scale": spec.guidance_scale,
        **({} if spec.negative_label is None else {"negative_label": spec.negative_label}),
        **provenance.model_dump(),
    }
    info = PngInfo()
    info.add_text(PARAMETERS, json.dumps(parameters, sort_keys=True))
    return info
