"""`msf plans`: list the compiled plans in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from msf_cli.settings import read_settings

if TYPE_CHECKING:
    from msf_engine.plan_cache import PlanRecord


@click.command()
def command() -> None:
    """List the plans of MSF_CACHE_DIR: their error against the reference, where that was verified, and their size.

    The error is against eager float32, at the worst bucket: relative RMS of a step's velocity, or grey levels of the
    decoder's pixels. Under "rows", buckets with the same mark give a row the same bytes in any batch.
    """
    from msf_cli.loading import plan_cache

    settings = read_settings()
    records = plan_cache(settings).records()
    if not records:
        raise click.ClickException(f"No plans in {settings.cache_dir / 'plans'}. Compile them with: msf compile")
    click.echo(tabulate([_row(record) for record in records], _HEAD, tablefmt="plain", disable_numparse=True))
    click.echo(f"{len(records)} plans, {sum(record.size_bytes for record in records) / 1e6:.1f} MB")


_HEAD = ("model", "plan", "backend", "precision", "size", "built in", "error", "allowed", "rows", "verified on")


def _row(record: PlanRecord) -> tuple[str, ...]:
    validations = record.validations
    if validations:
        worst = max(validations, key=lambda validation: validation.error)
        row_kinds = {each.row_digest[:6] if each.row_digest else "vary" for each in validations}
        verified = (f"{worst.error:.2g}", f"{worst.tolerance:.2g}", ",".join(sorted(row_kinds)))
        where = f"{worst.verified_on}, {worst.verified_at}"
    else:
        verified, where = ("-", "-", "-"), "not yet validated"
    return (
        record.model,
        record.plan,
        record.backend,
        record.precision,
        f"{record.size_bytes / 1e6:.1f} MB",
        f"{record.build_s:.1f} s",
        *verified,
        where,
    )
