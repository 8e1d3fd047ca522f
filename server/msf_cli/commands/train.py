"""`msf train`: train a model on a folder of images."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings


@click.command()
@click.option(
    "--data",
    type=UserPath(exists=True, file_okay=False),
    required=True,
    help="Folder with one folder of images per class.",
)
@click.option("--recipe", "recipe_name", default="msf-s", show_default=True, help="Built-in recipe, or TOML file.")
@click.option("--out", type=UserPath(file_okay=False), help="Checkpoint folder.  [default: runs/NAME]")
@click.option("--name", help="Name of the model.  [default: the recipe's]")
@click.option("--model-repo", type=UserPath(file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option(
    "--autoencoder",
    type=UserPath(exists=True, file_okay=False),
    help="Folder of a public AutoencoderKL in safetensors, instead of training one.",
)
@click.option(
    "--init-from",
    metavar="MODEL[:VERSION]",
    help="Model of the repository to continue from: its autoencoder unchanged, its denoisers' weights.",
)
@click.option(
    "--max-unreadable",
    type=click.FloatRange(0, 100),
    default=50.0,
    show_default=True,
    help="Percentage of image files that may be damaged before the training is refused; they are left out and listed.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
def command(
    data: Path,
    recipe_name: str,
    out: Path | None,
    name: str | None,
    model_repo: Path | None,
    autoencoder: Path | None,
    init_from: str | None,
    max_unreadable: float,
    device: str,
    threads: int | None,
) -> None:
    """Train a model and put it into the model repository, for `msf serve` to pick up.

    An interrupted run resumes from its last checkpoint. With several GPUs:
    torchrun --nproc-per-node 8 -m msf_cli.main train ...
    """
    import torch

    from msf_engine.errors import EngineError
    from msf_engine.repository import NAME, read_version
    from msf_training.recipe import read_recipe
    from msf_training.train import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads is not None:
        torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        recipe = read_recipe(recipe_name)
        name = name or recipe.name
        if not re.fullmatch(NAME, name):
            raise ValueError(f"Invalid --name {name!r}. Allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'.")
        if init_from and autoencoder:
            raise ValueError("Invalid --init-from with --autoencoder. Allowed: one of them.")
        repository = model_repo or read_settings().model_repo
        initial = None
        if init_from is not None:
            model, _, version = init_from.partition(":")
            initial = read_version(repository, model, version or None)
        folder = train(
            recipe,
            data,
            out or Path("runs") / name,
            repository,
            name=name,
            device=torch.device(device),
            public_autoencoder=autoencoder,
            initial=initial,
            max_unreadable_percent=max_unreadable,
        )
    except (EngineError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if folder is not None:
        click.echo(str(folder))
