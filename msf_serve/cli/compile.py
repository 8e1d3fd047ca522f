"""`msf compile`: build plans before they are needed."""

from __future__ import annotations

import click

from msf_serve.cli.logs import configure_logging
from msf_serve.cli.settings import read_settings


@click.command()
def command() -> None:
    """Build the plans of all models of MSF_MODEL_REPO for this machine, so that workers start at once."""
    from msf_serve.engine.backends import get_backend
    from msf_serve.engine.errors import EngineError
    from msf_serve.engine.loading import load_plans
    from msf_serve.engine.plans import PlanCache
    from msf_serve.engine.repository import find_models

    settings = read_settings()
    configure_logging(settings.log_level, "compile")
    try:
        backend = get_backend(settings.backend, settings.precision, settings.threads)
        for version in find_models(settings.model_repo):
            load_plans(version, backend, PlanCache(settings.cache_dir / "plans"))
    except EngineError as error:
        raise click.ClickException(str(error)) from error
