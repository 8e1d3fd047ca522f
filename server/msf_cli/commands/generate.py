"""`msf generate`: images of one class in a file, generated here or by a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import engine_failure, require_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from msf_engine.repository import ModelVersion

GAP = 2  # pixels between the images of a grid


@click.command()
@click.option("--prompt", required=True, help="Class name or id.")
@click.option("-n", "--num-images", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--out", type=UserPath(dir_okay=False), required=True, help="Image file to write.")
@click.option("--model", help="Model name, or name:version.  [default: the first of the repository]")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), default=0, show_default=True)
@click.option("--num-steps", type=click.IntRange(1), help="Steps of all stages together.  [default: the model's]")
@click.option("--guidance-scale", type=float, help="1 is none.  [default: the model's]")
@click.option("--negative-prompt", help="Class name or id that guidance steers away from.")
@click.option("--scale", type=click.IntRange(1, 32), default=4, show_default=True, help="Enlargement of the pixels.")
@click.option("--url", help="Server to use instead, such as http://127.0.0.1:8000.")
@click.option("--api-key", envvar="MSF_API_KEY", show_envvar=True, help="API key for the server.")
def command(
    prompt: str,
    num_images: int,
    out: Path,
    model: str | None,
    seed: int,
    num_steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
    scale: int,
    url: str | None,
    api_key: str | None,
) -> None:
    """Generate images of one class into one file, as a grid.

    Uses this machine's plans, or a running server with --url.
    """
    try:
        _check_out(out)
        if url is not None:
            request = {"model": model, "prompt": prompt, "n": num_images, "seed": seed}
            request |= {"negative_prompt": negative_prompt} if negative_prompt else {}
            images = _request(url, api_key, {**request, "num_steps": num_steps, "guidance_scale": guidance_scale})
        else:
            images = _generate(_find_model(model), prompt, num_images, seed, num_steps, guidance_scale, negative_prompt)
        _grid(images, scale).save(out)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(out))


def _check_out(out: Path) -> None:
    from PIL import Image

    suffixes = sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE)
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"Unknown image format of --out {str(out)!r}. Allowed: {', '.join(suffixes)}.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: {out.parent} is not a folder.")


def _request(url: str, api_key: str | None, request: dict[str, object]) -> list[Image]:
    from msf_cli.remote import request_images

    images, answer = request_images(url, api_key, request)
    model = f"{answer['model']}:{answer['version']}"
    click.echo(f"{len(images)} images of {model} in {answer['timings']['total_ms']:.0f} ms", err=True)
    return images


def _find_model(model: str | None) -> ModelVersion:
    from msf_engine.errors import EngineError
    from msf_engine.repository import list_versions, read_version

    repository = read_settings().model_repo
    require_models(repository)
    name, _, version = (model or "").partition(":")
    try:
        return read_version(repository, name or list_versions(repository)[0][0], version or None)
    except EngineError as error:
        raise engine_failure(error) from error


def _find_label(version: ModelVersion, prompt: str, option: str = "--prompt") -> int:
    from msf_server.class_names import allowed_classes, find_class

    labels = tuple(version.labels)
    label = find_class(prompt, labels)
    if label is None:
        allowed = allowed_classes(prompt, labels)
        raise ValueError(f"Unknown class {option} {prompt!r} for model {version.name}. {allowed}")
    return label


def _generate(
    version: ModelVersion,
    prompt: str,
    num_images: int,
    seed: int,
    num_steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
) -> list[Image]:
    from PIL import Image

    from msf_cli.loading import load_model
    from msf_engine.errors import EngineError
    from msf_engine.executor import SampleRequest
    from msf_engine.generate import generate

    label, config, sampling = _find_label(version, prompt), version.config, version.config.sampling
    negative_label = _find_label(version, negative_prompt, "--negative-prompt") if negative_prompt else None
    if negative_label is not None and config.is_flow_map:
        raise ValueError(f"Invalid --negative-prompt. Allowed: none, as {version.name} was distilled without.")
    if num_steps is not None and not len(config.stages) <= num_steps <= sampling.max_num_steps:
        allowed = f"{len(config.stages)} to {sampling.max_num_steps}"
        raise ValueError(f"Invalid --num-steps {num_steps}. Allowed: {allowed}.")
    scale = sampling.default_guidance_scale if guidance_scale is None else guidance_scale
    if not 0 <= scale <= sampling.max_guidance_scale:
        raise ValueError(f"Invalid --guidance-scale {scale}. Allowed: 0 to {sampling.max_guidance_scale}.")
    steps = config.split_steps(num_steps or config.default_num_steps)
    started_at = time.monotonic()
    try:
        _, plans = load_model(read_settings(), version)
        loaded_at = time.monotonic()
        samples = (SampleRequest(label, seed, index, steps, scale, negative_label) for index in range(num_images))
        images = generate(plans, list(samples))
    except EngineError as error:
        raise engine_failure(error) from error
    finished_at = time.monotonic()
    click.echo(
        f"{num_images} images in {finished_at - loaded_at:.2f} s (plans ready after {loaded_at - started_at:.1f} s)",
        err=True,
    )
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]


def _grid(images: Sequence[Image], scale: int) -> Image:
    """Arrange images in a nearly square grid, with pixels enlarged `scale` times and not smoothed."""
    from PIL import Image

    columns = next(c for c in range(1, len(images) + 1) if c * c >= len(images))
    rows = -(-len(images) // columns)
    width, height = (side * scale for side in images[0].size)
    sheet = Image.new(images[0].mode, (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        large = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (column * (width + GAP), row * (height + GAP)))
    return sheet
