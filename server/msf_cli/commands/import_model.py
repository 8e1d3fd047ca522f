"""`msf import`: public checkpoints as models of the repository."""

from __future__ import annotations

from pathlib import Path

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import engine_failure
from msf_engine.options import LAYOUTS, Layout

_FOLDER = UserPath(exists=True, file_okay=False)
_FILE = UserPath(exists=True, dir_okay=False)


@click.command()
@click.argument("source", type=UserPath(exists=True))
@click.option("--name", required=True, help="Name of the model in the repository.")
@click.option("--model-repo", type=UserPath(file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option("--vae", type=_FOLDER, help="Folder of an AutoencoderKL.  [default: vae of a pipeline's folder]")
@click.option("--layout", type=click.Choice(LAYOUTS), help="Project that a single file is from.")
@click.option("--labels", type=_FILE, help="Class names: a JSON list, or text with a name on each line.")
@click.option("--num-heads", type=click.IntRange(1), help="Attention heads.  [default: those of DiT at this width]")
def command(
    source: Path,
    name: str,
    model_repo: Path | None,
    vae: Path | None,
    layout: Layout | None,
    labels: Path | None,
    num_heads: int | None,
) -> None:
    """Put a public checkpoint into the model repository, for `msf serve` to pick up.

    SOURCE is the folder of a DiTPipeline of diffusers, or a file of weights of DiT, SiT, REPA or LightningDiT:
    safetensors, or a .pt of tensors alone. A file needs --layout and --vae. If anything is wrong, nothing is written.
    """
    from msf_engine.errors import EngineError
    from msf_engine.interchange.importing import ImportOptions, import_model

    repository = model_repo or read_settings().model_repo
    try:
        folder = import_model(source, repository, name, ImportOptions(vae, layout, labels, num_heads))
    except EngineError as error:
        raise engine_failure(error) from error
    click.echo(str(folder))
