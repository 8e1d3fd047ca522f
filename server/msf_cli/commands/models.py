"""`msf models`: what the repository holds."""

from __future__ import annotations

import click

from msf_cli.settings import read_settings


@click.command()
def command() -> None:
    """List the models and versions of MSF_MODEL_REPO, every file checked against its checksum."""
    from msf_engine.errors import EngineError
    from msf_engine.repository import find_models, verify

    try:
        for model in find_models(read_settings().model_repo):
            verify(model.folder)
            config = model.config
            click.echo(
                f"{model.name} {model.version}  {config.image.size}x{config.image.size}x{config.image.channels}  "
                f"{config.num_classes} classes  {config.base.default_num_steps}+{config.residual.default_num_steps} "
                f"steps  {config.description}"
            )
    except EngineError as error:
        raise click.ClickException(str(error)) from error
