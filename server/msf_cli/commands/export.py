"""`msf export`: models of the repository in the layouts of other projects."""

from __future__ import annotations

from pathlib import Path

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import engine_failure, require_models
from msf_engine.options import EXPORT_FORMATS, ExportFormat


@click.command()
@click.argument("model", metavar="MODEL[:VERSION]")
@click.option("--format", "target", type=click.Choice(EXPORT_FORMATS), required=True)
@click.option("--out", type=UserPath(), required=True, help="Folder to create.")
def command(model: str, target: ExportFormat, out: Path) -> None:
    """Write a model of MSF_MODEL_REPO for other software.

    diffusers: a folder that DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True) loads without msf-serve, and
    whose images are those of `msf generate`. onnx: a file for each network, for any batch.
    """
    from msf_engine.errors import EngineError
    from msf_engine.interchange.exporting import export_model
    from msf_engine.repository import read_version

    repository = read_settings().model_repo
    require_models(repository)
    name, _, number = model.partition(":")
    try:
        folder = export_model(read_version(repository, name, number or None), target, out)
    except EngineError as error:
        raise engine_failure(error) from error
    click.echo(str(folder))
