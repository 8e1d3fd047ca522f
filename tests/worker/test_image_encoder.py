from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from msf_scheduler.jobs import OutputFormat, Provenance
from msf_worker.image_encoder import encode_image
from tests.worker.support import SPEC


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("output_format", "lossless"),
    [("png", True), ("webp", True), ("jpeg", False)],
)
def test_every_format_encodes_grey_colour_and_transparency(
    channels: int, output_format: OutputFormat, lossless: bool
) -> None:
    rows, columns = np.mgrid[0:24, 0:16]
    image = np.stack([8 * rows, 10 * columns, 4 * (rows + columns), 128 + rows][:channels], axis=-1).astype(np.uint8)
    spec = SPEC.model_copy(update={"output_format": output_format})
    decoded = Image.open(
        io.BytesIO(encode_image(image, spec, index=0, provenance=Provenance(fingerprint="f", reproducibility="fast")))
    )
    assert (decoded.format, decoded.size) == (output_format.upper(), (16, 24))
    mode = {1: "L", 3: "RGB", 4: "RGBA" if lossless else "RGB"}[channels]
    decoded_pixels = np.asarray(decoded.convert(mode)).reshape(24, 16, -1).astype(int)
    assert np.abs(decoded_pixels - image[..., : decoded_pixels.shape[-1]]).max() <= (0 if lossless else 24)
