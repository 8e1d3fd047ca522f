"""`msf compile`: compile plans before they are needed."""

from __future__ import annotations

import click

from msf_cli.logs import configure_logging
from msf_cli.settings import read_settings
from msf_cli.setup_checks import engine_failure, require_models
from msf_engine.options import BACKENDS, PRECISIONS


@click.command()
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: MSF_BACKEND, or the device's best]")
@click.option("--precision", type=click.Choice(PRECISIONS), help="[default: MSF_PRECISION, or the fastest]")
@click.option("--buckets", help="Rows per batch, such as 1,2,4.  [default: MSF_BUCKETS]")
@click.option("--model", help="Model name, or name:version.  [default: all of MSF_MODEL_REPO]")
def command(model: str | None, **options: str | None) -> None:
    """Compile the plans of the models of MSF_MODEL_REPO for this machine, so that workers start at once.

    Workers look for plans of their MSF_BACKEND, MSF_PRECISION, MSF_BUCKETS and MSF_THREADS.
    """
    from msf_cli.loading import plan_cache
    from msf_engine.backends import default_backends, get_backend
    from msf_engine.errors import EngineError
    from msf_engine.plan_loader import compile_plans
    from msf_engine.repository import list_versions, read_version

    settings = read_settings(**{name: value for name, value in options.items() if value is not None})
    require_models(settings.model_repo)
    configure_logging(settings.log_level, "compile", settings.log_format)
    failures: list[EngineError] = []
    try:
        backend = get_backend(settings.backend or default_backends()[0], settings.precision, settings.threads)
        name, _, number = (model or "").partition(":")
        for key in [(name, number or None)] if model else list_versions(settings.model_repo):
            try:
                version = read_version(settings.model_repo, *key)
                compile_plans(version, backend, plan_cache(settings), settings.buckets)
            except EngineError as error:  # of this version alone
                failures.append(error)
    except EngineError as error:
        raise engine_failure(error) from error
    if len(failures) == 1:
        raise engine_failure(failures[0]) from failures[0]
    if failures:
        raise click.ClickException("; ".join(map(str, failures)))
