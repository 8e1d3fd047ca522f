"""`msf keys`: create API keys, and check the file of them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from msf_cli.path_type import UserPath
from msf_cli.settings import read_settings
from msf_cli.setup_checks import IncompleteSetup
from msf_server.api_keys import NAME_PATTERN, Scope, digest, new_key, read_keys
from msf_server.webhook_delivery import tenant_secret


@click.group()
def command() -> None:
    """Create API keys, and check the file that holds them.

    A key is printed once, on standard error; the table on standard output has only its digest:

    \b
        msf keys new --name team-a >> keys.toml
        MSF_API_KEYS_FILE=keys.toml msf serve
    """


def _checked_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise click.BadParameter(f"{name!r}. Allowed: 1 to 64 letters, digits, '.', '_' and '-'.")
    return name


@command.command()
@click.option("--name", required=True, callback=_checked_name, help="Tenant of all requests with the key.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.GENERATE.value],
    show_default=True,
    help="Permission of the key; repeatable.",
)
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), help="[default: no limit]")
@click.option("--samples-per-day", type=click.IntRange(1, 1_000_000_000), help="[default: no limit]")
@click.option(
    "--concurrent-sample-steps",
    type=click.IntRange(1, 1_000_000_000),
    help="Denoising steps, n times num_steps, queued or running at once.  [default: no limit]",
)
@click.option("--weight", type=click.FloatRange(0, min_open=True), help="Fair share of the device.  [default: 1]")
def new(
    name: str,
    scopes: tuple[str, ...],
    requests_per_minute: int | None,
    samples_per_day: int | None,
    concurrent_sample_steps: int | None,
    weight: float | None,
) -> None:
    """Create a key; print it, and the table to append to the file of keys."""
    key = new_key()
    click.echo(f"The key of {name}, which is not printed again: {key}", err=True)
    click.echo("[[keys]]")
    click.echo(f'name = "{name}"')
    click.echo(f'sha256 = "{digest(key)}"')
    click.echo("scopes = [" + ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes)) + "]")
    limits = {
        "requests_per_minute": requests_per_minute,
        "samples_per_day": samples_per_day,
        "concurrent_sample_steps": concurrent_sample_steps,
        "weight": weight,
    }
    for limit, value in limits.items():
        if value is not None:
            click.echo(f"{limit} = {value}")
    click.echo()


@command.command("webhook-secret")
@click.option("--name", default="", help="Name of the API key.  [default: the secret of a service without keys]")
def webhook_secret(name: str) -> None:
    """Print the secret that verifies a key's webhooks, derived from MSF_WEBHOOK_SECRET."""
    master = read_settings().webhook_secret
    if master is None:
        raise IncompleteSetup("MSF_WEBHOOK_SECRET is not set.")
    click.echo(tenant_secret(master, name))


@command.command()
@click.argument("file", type=UserPath(), required=False)
def check(file: Path | None) -> None:
    """List the keys of FILE (default: MSF_API_KEYS_FILE), or print its error."""
    file = file or read_settings().api_keys_file
    if file is None:
        raise IncompleteSetup("No file, and MSF_API_KEYS_FILE is not set.")
    try:
        keys = read_keys(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for key in keys:
        limits = {
            "requests/min": key.requests_per_minute,
            "samples/day": key.samples_per_day,
            "concurrent sample steps": key.concurrent_sample_steps,
            "weight": key.weight,
        }
        parts = [
            f"{value:g} {limit}" if limit != "weight" else f"weight {value:g}"
            for limit, value in limits.items()
            if value
        ]
        click.echo("  ".join([key.name, "+".join(sorted(key.scopes)), *parts]))
