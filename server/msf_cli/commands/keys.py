"""`msf keys`: make API keys, and look at the file that lets them in."""

from __future__ import annotations

import re
from pathlib import Path

import click

from msf_cli.settings import read_settings
from msf_server.api_keys import NAME_PATTERN, Scope, digest, new_key, read_keys
from msf_server.webhook_delivery import tenant_secret


@click.group()
def command() -> None:
    """Make API keys, and look at the file that lets them in.

    A key is shown once, on standard error; the table that goes to standard output holds only its digest:

    \b
        msf keys new --name team-a >> keys.toml
        MSF_API_KEYS_FILE=keys.toml msf serve
    """


def _checked_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise click.BadParameter(f"{name!r}. Allowed: 1 to 64 letters, digits, '.', '_' and '-'.")
    return name


@command.command()
@click.option("--name", required=True, callback=_checked_name, help="tenant of all that is asked for with the key")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.GENERATE.value],
    show_default=True,
    help="what the key is for; may be given twice",
)
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), help="default: no limit")
@click.option("--samples-per-day", type=click.IntRange(1, 1_000_000_000), help="default: no limit")
@click.option("--weight", type=click.FloatRange(0, min_open=True), help="share of the device, default 1")
def new(
    name: str,
    scopes: tuple[str, ...],
    requests_per_minute: int | None,
    samples_per_day: int | None,
    weight: float | None,
) -> None:
    """Print a new key, and the table to append to the file of keys."""
    key = new_key()
    click.echo(f"The key of {name}, which is not shown again: {key}", err=True)
    click.echo("[[keys]]")
    click.echo(f'name = "{name}"')
    click.echo(f'sha256 = "{digest(key)}"')
    click.echo("scopes = [" + ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes)) + "]")
    limits = {"requests_per_minute": requests_per_minute, "samples_per_day": samples_per_day, "weight": weight}
    for limit, value in limits.items():
        if value is not None:
            click.echo(f"{limit} = {value}")
    click.echo()


@command.command("webhook-secret")
@click.option("--name", default="", help="name of the API key; without it, that of a service without keys")
def webhook_secret(name: str) -> None:
    """Print what a key's webhooks are signed with, by MSF_WEBHOOK_SECRET."""
    master = read_settings().webhook_secret
    if master is None:
        raise click.UsageError("set MSF_WEBHOOK_SECRET")
    click.echo(tenant_secret(master, name))


@command.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def check(file: Path | None) -> None:
    """List what FILE (default: MSF_API_KEYS_FILE) lets in, or say what is wrong with it."""
    file = file or read_settings().api_keys_file
    if file is None:
        raise click.UsageError("name a file, or set MSF_API_KEYS_FILE")
    try:
        keys = read_keys(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for key in keys:
        limits = {"requests/min": key.requests_per_minute, "samples/day": key.samples_per_day, "weight": key.weight}
        shown = [
            f"{value:g} {limit}" if limit != "weight" else f"weight {value:g}"
            for limit, value in limits.items()
            if value
        ]
        click.echo("  ".join([key.name, "+".join(sorted(key.scopes)), *shown]))
