"""Log lines on standard error, as text or as JSON objects."""

from __future__ import annotations

import logging
from typing import Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]


def configure_logging(level: str, process: str, form: Format = "text") -> None:
    """Log as `process` (server, worker or compile) from `level` upwards."""
    logging.basicConfig(level=level.upper(), handlers=[make_handler(process, form)])


def make_handler(process: str, form: Format) -> logging.StreamHandler[TextIO]:
    """Return a handler that writes lines of `form` to standard error, each with the name of its process."""
    handler = logging.StreamHandler()
    if form == "json":
        fields = "%(asctime)s %(levelname)s %(name)s %(message)s"
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=renamed, static_fields={"process": process}))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {process} %(levelname)s %(message)s"))
    return handler
