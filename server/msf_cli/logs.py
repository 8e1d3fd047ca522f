"""Log lines on standard error, as text or as JSON objects. What callers send cannot forge lines or steer a terminal."""

from __future__ import annotations

import logging
from typing import Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]


def configure_logging(level: str, process: str, form: Format = "text") -> None:
    """Log as `process` (server, worker or compile) from `level` upwards."""
    logging.raiseExceptions = False  # a full disk loses log lines, and must not fill what is left with tracebacks
    logging.basicConfig(level=level.upper(), handlers=[make_handler(process, form)])
    logging.captureWarnings(True)


def make_handler(process: str, form: Format) -> logging.StreamHandler[TextIO]:
    """Return a handler that writes lines of `form` to standard error, each with the name of its process."""
    handler = logging.StreamHandler()
    if form == "json":
        fields = "%(asctime)s %(levelname)s %(name)s %(message)s"
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(
            JsonFormatter(fields, rename_fields=renamed, static_fields={"process": process}, json_ensure_ascii=True)
        )
    else:
        handler.setFormatter(LineFormatter(f"%(asctime)s {process} %(levelname)s %(message)s"))
    return handler


class LineFormatter(logging.Formatter):
    """Writes a record as one line and its traceback as indented ones, with characters that do not print escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # as the base class names it
        """Return the line of the record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        """Return the lines of a traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return the lines of a stack."""
        return _indented(super().formatStack(stack_info))


def printable(text: str) -> str:
    r"""Return `text` with line ends, control and formatting characters, and lone surrogates as Python escapes (`\x1b`).

    A backslash stays as it is: an escape may be the caller's own text, but nothing else can.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _indented(lines: str) -> str:
    return "\n".join(f"    {printable(line)}" for line in lines.split("\n"))
