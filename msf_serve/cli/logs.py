"""Log lines on standard error."""

from __future__ import annotations

import logging


def configure_logging(level: str, process: str) -> None:
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s {process} %(levelname)s %(message)s")
