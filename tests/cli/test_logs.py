from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

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


HOSTILE = "/v1/x\n2026-01-01 server WARNING forged\r\x1b[31m\x00\x7f\x9b\u2028\u2029\u202e\u200b\ud800"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_message_cannot_forge_lines_or_steer_a_terminal(form: Format) -> None:
    [line] = written("server", form, lambda logger: logger.info("GET %s: 404", HOSTILE))
    assert line.isprintable()
    assert "\\u202e" in line
    assert "[31m" in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_text_of_an_exception_cannot_forge_lines(form: Format) -> None:
    def fail(logger: logging.Logger) -> None:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("failed", stack_info=True)

    first, *others = written("server", form, fail)
    assert all(line.isprintable() for line in (first, *others))
    assert all(line.startswith("    ") for line in others)


def test_other_languages_stay_readable() -> None:
    [line] = written("server", "text", lambda logger: logger.info("Größe 大 🍎 \\n"))
    assert line.endswith("Größe 大 🍎 \\n")


def test_text_lines_name_the_process() -> None:
    [line] = written("worker", "text", lambda logger: logger.info("seen"))
    assert line.endswith(" worker INFO seen")
