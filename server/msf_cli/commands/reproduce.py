"""`msf reproduce`: regenerate an image from the metadata in its PNG, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import engine_failure

if TYPE_CHECKING:
    from msf_scheduler.jobs import JobSpec, Provenance

EXIT_DIFFERENT = 1
MAX_ROUNDING = 2  # grey levels by which another fingerprint, or fast mode, may differ


@click.command()
@click.argument("image", type=UserPath(dir_okay=False, exists=True))
@click.option("--out", type=UserPath(dir_okay=False), help="File for the regenerated image.")
def command(image: Path, out: Path | None) -> None:
    """Regenerate IMAGE, a PNG of this service, from its metadata with the model of MSF_MODEL_REPO, and compare.

    The exit status is 0 if every byte is equal. Otherwise it is 1, and the output has the difference of the pixels and
    whether this machine's fingerprint (plans and libraries) is the one of the image.
    """
    from msf_engine.errors import EngineError

    spec, index, provenance = _read(image)
    try:
        content, fingerprint = _regenerate(spec, index, provenance)
    except EngineError as error:
        raise engine_failure(error) from error
    if out is not None:
        out.write_bytes(content)
    if content == image.read_bytes():
        mode = provenance.reproducibility
        click.echo(f"{image}: identical to the byte ({len(content)} bytes, {mode}, {fingerprint[:12]})")
        return
    if fingerprint != provenance.fingerprint:
        click.echo(f"{image} has fingerprint {provenance.fingerprint[:12]}, this machine {fingerprint[:12]}")
    elif provenance.reproducibility == "fast":
        click.echo(f"{image} was generated in fast mode, which does not promise equal bytes")
    click.echo(f"{image}: {_difference(image, content)}")
    raise click.exceptions.Exit(EXIT_DIFFERENT)


def _read(image: Path) -> tuple[JobSpec, int, Provenance]:
    from PIL import Image, UnidentifiedImageError
    from pydantic import ValidationError

    from msf_scheduler.jobs import JobSpec, Provenance
    from msf_worker.image_encoder import PARAMETERS

    try:
        with Image.open(image) as opened:
            fields = json.loads(opened.info[PARAMETERS])
        provenance = Provenance(fingerprint=fields.pop("fingerprint"), reproducibility=fields.pop("reproducibility"))
        index = fields.pop("index")
        return JobSpec(**fields, num_samples=1, first_index=index), index, provenance
    except (UnidentifiedImageError, KeyError, ValueError, TypeError, ValidationError) as error:
        raise click.ClickException(f"{image} is not a PNG of this service (no text chunk {PARAMETERS})") from error


def _regenerate(spec: JobSpec, index: int, provenance: Provenance) -> tuple[bytes, str]:
    """Return the encoded image, in the same mode as before, and this machine's fingerprint."""
    from msf_cli.loading import load_model
    from msf_engine.generate import generate
    from msf_engine.repository import read_version
    from msf_worker.active_job import sample_request
    from msf_worker.image_encoder import encode_image, runtime_fingerprint

    settings = read_settings()
    version = read_version(settings.model_repo, spec.model, spec.version)
    _, plans = load_model(settings, version)
    sample = sample_request(spec, index, version.config.split_steps(spec.num_steps))
    [pixels] = generate(plans, [sample], strict=provenance.reproducibility == "strict")
    fingerprint = runtime_fingerprint(plans.fingerprint)
    return encode_image(pixels, spec, index=index, provenance=provenance), fingerprint


def _difference(image: Path, content: bytes) -> str:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(image) as before, Image.open(io.BytesIO(content)) as after:
        pixels_before, pixels_after = (np.asarray(opened).astype(int) for opened in (before, after))
    if pixels_before.shape != pixels_after.shape:
        return "different size"
    difference = int(np.abs(pixels_before - pixels_after).max())
    if difference == 0:
        return "equal pixels in different bytes"
    return f"pixels differ by at most {difference} grey levels" + (" (rounding)" if difference <= MAX_ROUNDING else "")
