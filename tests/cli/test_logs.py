from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from msf_cli.logs import Format, make_handler


def written(process: str, form: Format, log: Callable[[logging.Logger], Any]) -> list[str]:
    handler = make_handler(process, form)
    stream = handler.stream = io.StringIO()
    logger = logging.Logger("msf", logging.INFO)
    logger.addHandler(handler)
    log(logger)
    return stream.getvalue().splitlines()


def test_json_lines_carry_their_extra_fields() -> None:
    extra = {"job_id": "a1", "duration_ms": 7.5}
    [text] = written("server", "json", lambda logger: logger.info("job %s ended", "a1", extra=extra))
    line = json.loads(text)
    assert line.pop("time")
    assert line == {"level": "INFO", "logger": "msf", "message": "job a1 ended", "process": "server", **extra}


def test_an_exception_stays_one_json_line() -> None:
    def fail(logger: logging.Logger) -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            logger.error("failed", exc_info=sys.exc_info())

    [line] = written("worker", "json", fail)
    assert "ValueError: broken" in json.loads(line)["exc_info"]


def test_text_lines_name_the_process() -> None:
    [line] = written("worker", "text", lambda logger: logger.info("seen"))
    assert line.endswith(" worker INFO seen")
