"""`msf models`: list the model repository, copy models into it, or set the aliases of a running service."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from msf_cli.operator_redis import run_with_redis
from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import IncompleteSetup, require_models
from msf_scheduler.aliases import Aliases, InvalidAlias, Weights
from msf_scheduler.connection import RedisClient


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the models and versions of MSF_MODEL_REPO, with every file checked against its checksum."""
    if context.invoked_subcommand is not None:
        return
    from msf_engine.errors import EngineError
    from msf_engine.repository import read_version
    from msf_engine.repository_scan import scan

    repository = read_settings().model_repo
    require_models(repository)
    contents = scan(repository)
    problems = [f"{':'.join(filter(None, key))}: {reason}" for key, reason in contents.refusals.items()]
    for key in contents.versions:
        try:
            model = read_version(repository, *key)
            model.verify()
        except EngineError as error:
            problems.append(f"{':'.join(key)}: {error}")
        else:
            config = model.config
            steps = "+".join(str(stage.default_num_steps) for stage in config.stages)
            click.echo(
                f"{model.name} {model.version}  {config.image.size}x{config.image.size}x{config.image.channels}  "
                f"{config.num_classes} classes  {steps} steps  {config.description}"
            )
    if problems:
        raise IncompleteSetup("; ".join(problems))


@command.command()
@click.argument("source")
@click.option("--model-repo", type=UserPath(file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option("--name", help="Name of the model in the repository.  [default: its name at the source]")
def pull(source: str, model_repo: Path | None, name: str | None) -> None:
    """Copy models from SOURCE into the repository.

    SOURCE is a path, or a URL with https://, s3://, gs://, hf:// or another scheme of fsspec: the folder of a version,
    of a model (its newest version) or of a repository (all versions of all models). Checksums are verified before a
    version appears, and an interrupted copy resumes where it stopped. Of several versions, each is copied or refused
    for itself; if one is refused, the command ends with status 1.
    """
    from msf_cli import model_pull

    repository, problems = model_repo or read_settings().model_repo, []
    try:
        versions = model_pull.open_sources(source)
    except model_pull.PullError as error:
        raise click.ClickException(str(error)) from error
    if name and len({version.name for version in versions}) > 1:
        raise click.UsageError(f"--name {name}: {source} has several models. Allowed: the folder of one.")
    for version in versions:
        try:
            click.echo(str(model_pull.pull(version, repository, name or version.name, _show_progress)))
        except (model_pull.PullError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise click.ClickException("\n".join(problems))


@command.command()
@click.argument("model")
@click.option("--model-repo", type=UserPath(file_okay=False), help="[default: MSF_MODEL_REPO]")
@click.option("--out", type=UserPath(file_okay=False), help="Repository of the new version.  [default: the same]")
def quantize(model: str, model_repo: Path | None, out: Path | None) -> None:
    """Write MODEL[:VERSION] as its next version with weights of 8 bits, in half of the bytes.

    Only the files are smaller: plans compute as precisely as those of the version itself.
    """
    from msf_engine.errors import EngineError
    from msf_engine.repository import next_version, read_version, save_version

    repository = model_repo or read_settings().model_repo
    name, _, number = model.partition(":")
    try:
        version = read_version(repository, name, number or None)
        target = out or repository
        folder = save_version(
            target, name, next_version(target, name, version.labels), version.load(), version.labels, precision="int8"
        )
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(folder))


@command.command()
@click.argument("name", required=False)
@click.argument("versions", nargs=-1, metavar="[VERSION[=WEIGHT]]...")
@click.option("--delete", "is_deletion", is_flag=True, help="Delete the alias NAME.")
def alias(name: str | None, versions: tuple[str, ...], is_deletion: bool) -> None:
    """Set what NAME stands for: a version, or several by weight; without arguments, list the aliases.

    NAME is a model or MODEL:TAG. All servers follow within a second or two, without a restart.

    \b
    msf models alias emoji 1=0.9 2=0.1     a canary: a tenth of the requests to emoji get version 2
    msf models alias emoji:stable 1        one more name of version 1
    msf models alias emoji --delete        emoji stands for its newest version again
    """
    if is_deletion and (name is None or versions):
        raise click.UsageError("--delete needs NAME, and no versions.")
    if name and not versions and not is_deletion:
        raise click.UsageError(f"Missing versions of {name}. Allowed: VERSION, VERSION=WEIGHT ..., or --delete.")
    weights = _weights(versions)

    async def apply(redis: RedisClient) -> dict[str, Weights]:
        aliases = Aliases(redis)
        if name and is_deletion:
            await aliases.delete(name)
        elif name:
            await aliases.set(name, weights)
        return await aliases.read()

    try:
        aliases = run_with_redis(apply)
    except InvalidAlias as error:
        raise click.ClickException(str(error)) from error
    for each, shares in aliases.items():
        click.echo(f"{each}  " + " ".join(f"{version}={weight:g}" for version, weight in shares.items()))


def _weights(texts: tuple[str, ...]) -> dict[str, float]:
    """Parse VERSION or VERSION=WEIGHT; a single version has all requests."""
    weights: dict[str, float] = {}
    for text in texts:
        version, separator, weight = text.partition("=")
        try:
            weights[version] = float(weight) if separator or len(texts) > 1 else 1.0
        except ValueError:
            raise click.UsageError(f"Invalid weight in {text!r}. Allowed: VERSION=WEIGHT, such as 2=0.1.") from None
    if len(weights) < len(texts):
        raise click.UsageError("A version occurs twice. Allowed: once.")
    return weights


def _show_progress(file: str, num_bytes: int, size: int) -> None:
    """Update a line on a terminal; print a line per complete file elsewhere."""
    line = f"{file}  {num_bytes / 1e6:.1f} of {size / 1e6:.1f} MB"
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line}", nl=num_bytes == size, err=True)
    elif num_bytes == size:
        click.echo(line, err=True)
