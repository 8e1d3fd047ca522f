"""`msf reproduce`: make an image again from what its own file tells, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from msf_cli.settings import read_settings

if TYPE_CHECKING:
    from msf_scheduler.jobs import JobSpec, Provenance

EXIT_DIFFERENT = 1
MAX_ROUNDING = 2  # grey levels that another fingerprint, or fast mode, may differ by


@click.command()
@click.argument("image", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the image made anew.")
def command(image: Path, out: Path | None) -> None:
    """Make IMAGE, a PNG of this service, again with the model of MSF_MODEL_REPO, alone, and compare the files.

    The exit status is 0 if every byte is the same, 1 if not: then it says how far the pixels are apart and whether the
    fingerprint, of this machine's plans and libraries, is the one that made it.
    """
    from msf_engine.errors import EngineError

    spec, index, made = _read(image)
    try:
        file, fingerprint = _make(spec, index, made)
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        out.write_bytes(file)
    if file == image.read_bytes():
        click.echo(f"{image}: the same, to the byte ({len(file)} bytes, {made.reproducibility}, {fingerprint[:12]})")
        return
    if fingerprint != made.fingerprint:
        click.echo(f"{image} was made by {made.fingerprint[:12]}, this machine is {fingerprint[:12]}")
    elif made.reproducibility == "fast":
        click.echo(f"{image} was made in fast mode, which promises no bytes")
    click.echo(f"{image}: {_difference(image, file)}")
    raise click.exceptions.Exit(EXIT_DIFFERENT)


def _read(image: Path) -> tuple[JobSpec, int, Provenance]:
    from PIL import Image, UnidentifiedImageError
    from pydantic import ValidationError

    from msf_scheduler.jobs import JobSpec, Provenance
    from msf_worker.image_encoder import PARAMETERS

    try:
        with Image.open(image) as opened:
            fields = json.loads(opened.info[PARAMETERS])
        made = Provenance(fingerprint=fields.pop("fingerprint"), reproducibility=fields.pop("reproducibility"))
        index = fields.pop("index")
        return JobSpec(**fields, num_samples=1, first_index=index), index, made
    except (UnidentifiedImageError, KeyError, ValueError, TypeError, ValidationError) as error:
        raise click.ClickException(f"{image} is no PNG that tells how it was made (text chunk {PARAMETERS})") from error


def _make(spec: JobSpec, index: int, made: Provenance) -> tuple[bytes, str]:
    """The encoded image, made as it was (strictly, or not), and this machine's fingerprint."""
    from msf_cli.loading import load_model
    from msf_engine.executor import SampleRequest
    from msf_engine.generate import generate
    from msf_engine.repository import read_version
    from msf_worker.image_encoder import encode_image, runtime_fingerprint

    settings = read_settings()
    version = read_version(settings.model_repo, spec.model, spec.version)
    _, plans = load_model(settings, version)
    steps = version.config.split_steps(spec.num_steps)
    sample = SampleRequest(spec.label, spec.seed, index, *steps, spec.guidance_scale)
    [pixels] = generate(plans, [sample], strict=made.reproducibility == "strict")
    fingerprint = runtime_fingerprint(plans.fingerprint)
    return encode_image(pixels, spec, index=index, provenance=made), fingerprint


def _difference(image: Path, file: bytes) -> str:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(image) as one, Image.open(io.BytesIO(file)) as other:
        pixels = [np.asarray(each).astype(int) for each in (one, other)]
    if pixels[0].shape != pixels[1].shape:
        return "another size"
    apart = int(np.abs(pixels[0] - pixels[1]).max())
    if apart == 0:
        return "the same pixels in other bytes"
    return f"pixels differ by {apart} grey levels at most" + (" (rounding)" if apart <= MAX_ROUNDING else "")
