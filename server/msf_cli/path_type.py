"""Paths among the arguments of commands, in which `~` is the home folder as in settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class UserPath(click.Path):
    """Path whose `~` is expanded, as shells leave it in `--out=~/images` and in quotes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~`, then check the path as click does."""
        return super().convert(os.path.expanduser(value), param, ctx)
