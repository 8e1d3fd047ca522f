"""`msf health`: check that a URL answers, for containers' health checks."""

from __future__ import annotations

import urllib.error
import urllib.request

import click

TIMEOUT_S = 2.5


@click.command()
@click.argument("url")
def command(url: str) -> None:
    """Check that URL answers with status 200; otherwise exit with 1 and the reason."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            status = answer.status
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{url}: {error}") from error
    if status != 200:
        raise click.ClickException(f"{url}: status {status}")
