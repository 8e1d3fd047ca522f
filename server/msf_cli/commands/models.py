"""`msf models`: list the model repository, or copy a model into it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from msf_cli.settings import read_settings
from msf_cli.setup_checks import IncompleteSetup, require_models


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the models and versions of MSF_MODEL_REPO, with every file checked against its checksum."""
    if context.invoked_subcommand is not None:
        return
    from msf_engine.errors import EngineError
    from msf_engine.repository import read_version, verify
    from msf_engine.repository_scan import scan

    repository = read_settings().model_repo
    require_models(repository)
    contents = scan(repository)
    problems = [f"{':'.join(filter(None, key))}: {reason}" for key, reason in contents.refusals.items()]
    for key in contents.versions:
        try:
            model = read_version(repository, *key)
            verify(model.folder)
        except EngineError as error:
            problems.append(f"{':'.join(key)}: {error}")
        else:
            config = model.config
            click.echo(
                f"{model.name} {model.version}  {config.image.size}x{config.image.size}x{config.image.channels}  "
                f"{config.num_classes} classes  {config.base.default_num_steps}+{config.residual.default_num_steps} "
                f"steps  {config.description}"
            )
    if problems:
        raise IncompleteSetup("; ".join(problems))


@command.command()
@click.argument("source")
@click.option("--repo", type=click.Path(path_type=Path, file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option("--name", help="Name of the model in the repository.  [default: its name at the source]")
def pull(source: str, repo: Path | None, name: str | None) -> None:
    """Copy a model from SOURCE into the repository.

    SOURCE is the folder of a model, or of one of its versions: a path, or a URL with https://, s3://, gs:// or hf://.
    Checksums are verified, and an interrupted copy resumes where it stopped.
    """
    from msf_cli import model_pull

    try:
        version = model_pull.open_source(source)
        folder = model_pull.pull(version, repo or read_settings().model_repo, name or version.name, _show_progress)
    except (model_pull.PullError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(folder))


def _show_progress(file: str, num_bytes: int, size: int) -> None:
    """Update a line on a terminal; print a line per complete file elsewhere."""
    line = f"{file}  {num_bytes / 1e6:.1f} of {size / 1e6:.1f} MB"
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=num_bytes == size, err=True)
    elif num_bytes == size:
        click.echo(line, err=True)
