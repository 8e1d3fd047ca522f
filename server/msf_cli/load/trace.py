"""Recorded request traces, in the formats in which they are published."""

from __future__ import annotations

import ast
import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FORMATS = (
    "lines Request(prompt=..., num_inference_steps=..., timestamp=...) as of vLLM-Omni, or CSV with TIMESTAMP "
    "(Azure's LLM inference traces), or end_timestamp and duration (Azure's functions traces)"
)


@dataclass(frozen=True)
class TraceEntry:
    """One recorded request; None: the trace does not say."""

    arrived_s: float | None = None  # in the trace's own time
    num_steps: int | None = None
    seed: int | None = None
    slo_s: float | None = None


@dataclass(frozen=True)
class Trace:
    """Entries in the order of arrival; either all have a time or none has."""

    entries: tuple[TraceEntry, ...]

    @property
    def is_timed(self) -> bool:
        """True if the trace has times of arrival."""
        return self.entries[0].arrived_s is not None


def read_trace(file: Path) -> Trace:
    """Read a trace. Raises ValueError with what is wrong, and where."""
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty")
    if lines[0].startswith("Request("):
        entries = [_read_line(file, number, _omni_entry, line) for number, line in enumerate(lines, 1)]
    else:
        columns = set(lines[0].split(","))
        if "TIMESTAMP" in columns:
            read = _llm_entry
        elif {"end_timestamp", "duration"} <= columns:
            read = _function_entry
        else:
            raise ValueError(f"{file} is in no known format. Allowed: {FORMATS}")
        entries = [_read_line(file, number, read, row) for number, row in enumerate(csv.DictReader(lines), 2)]
    times = [entry.arrived_s for entry in entries if entry.arrived_s is not None]
    if len(times) not in (0, len(entries)) or not entries:
        raise ValueError(f"{file} has a time for {len(times)} of {len(entries)} requests. Allowed: for all or for none")
    return Trace(tuple(sorted(entries, key=lambda entry: entry.arrived_s or 0.0)))


def _read_line(file: Path, number: int, read: Callable[[Any], TraceEntry], line: Any) -> TraceEntry:
    try:
        return read(line)
    except (ValueError, TypeError, SyntaxError, KeyError) as error:
        raise ValueError(f"{file}, line {number}: {error}. Allowed: {FORMATS}") from error


def _omni_entry(line: str) -> TraceEntry:
    call = ast.parse(line.strip(), mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError("no Request(...)")
    fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    slo_ms, num_steps = fields.get("slo_ms"), fields.get("num_inference_steps")
    return TraceEntry(
        arrived_s=_number(fields.get("timestamp")),
        num_steps=None if num_steps is None else int(num_steps),
        seed=fields.get("seed"),
        slo_s=None if slo_ms is None else float(slo_ms) / 1000,
    )


def _llm_entry(row: Mapping[str, str]) -> TraceEntry:
    """Read the time alone: tokens have no equal here, so the mix decides what is asked for."""
    return TraceEntry(arrived_s=datetime.fromisoformat(row["TIMESTAMP"]).timestamp())


def _function_entry(row: Mapping[str, str]) -> TraceEntry:
    return TraceEntry(arrived_s=float(row["end_timestamp"]) - float(row["duration"]))


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def span_s(entries: Iterable[TraceEntry]) -> float:
    """Return the time from the first arrival to the last."""
    times = [entry.arrived_s or 0.0 for entry in entries]
    return max(times) - min(times)
