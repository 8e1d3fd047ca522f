"""`msf distill`: turn a model of the repository into one that needs few steps."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings


@click.command()
@click.option("--model", metavar="MODEL[:VERSION]", required=True, help="Model of the repository to distill.")
@click.option("--recipe", "recipe_name", help="Built-in recipe, or TOML file.  [default: the model's]")
@click.option("--out", type=UserPath(file_okay=False), help="Checkpoint folder.  [default: runs/NAME-distilled]")
@click.option("--name", help="Name of the new model.  [default: the same, as its next version]")
@click.option("--model-repo", type=UserPath(file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def command(
    model: str,
    recipe_name: str | None,
    out: Path | None,
    name: str | None,
    model_repo: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Distill a model into flow maps, which need few steps and no guided rows.

    It needs no images, only the model. An interrupted run resumes from its last checkpoint. With several GPUs:
    torchrun --nproc-per-node 8 -m msf_cli.main distill ...
    """
    import torch

    from msf_engine.errors import EngineError
    from msf_engine.repository import NAME, read_version
    from msf_training.distill import distill
    from msf_training.distillation_recipe import read_distillation_recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads is not None:
        torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        teacher_name, _, version = model.partition(":")
        name = name or teacher_name
        if not re.fullmatch(NAME, name):
            raise ValueError(f"Invalid --name {name!r}. Allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'.")
        recipe = read_distillation_recipe(recipe_name or teacher_name)
        repository = model_repo or read_settings().model_repo
        teacher = read_version(repository, teacher_name, version or None)
        folder = distill(
            recipe,
            teacher,
            out or Path("runs") / f"{name}-distilled",
            repository,
            name=name,
            device=torch.device(device),
        )
    except (EngineError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if folder is not None:
        click.echo(str(folder))
