"""Job records in Redis: a hash, because scripts change single fields and Lua's JSON would round large integers.

Fields have the names of `JobRecord`'s, and its nested records are JSON. Other fields are for the scripts: what
`JobQueue.admit` stores, and `seq`, `clock_offset`, `worker`, `num_deaths`, `num_deaths_alone`, "lapsed …", and of a
running job that others follow `charged_to` and `served_as`, the ids of the waiters that pay and whose terms hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from msf_scheduler.errors import SchedulerError
from msf_scheduler.jobs import SCHEMA_VERSION, JobRecord

_NESTED = ("spec", "terms", "progress", "provenance", "delivery", "timings", "error")
_TIMES = ("admitted_at", "deadline_at", "claimed_at", "finished_at")


def decode_job(hash_fields: Mapping[bytes, bytes] | Sequence[bytes]) -> JobRecord:
    """Return the record of a hash, given as a mapping or as scripts return it (name, value, …)."""
    if not isinstance(hash_fields, Mapping):
        hash_fields = dict(zip(hash_fields[::2], hash_fields[1::2], strict=True))
    fields: dict[str, Any] = {name.decode(): value.decode() for name, value in hash_fields.items()}
    if int(fields["schema_version"]) != SCHEMA_VERSION:
        raise SchedulerError(
            f"job {fields['id']} has schema_version {fields['schema_version']}; this release reads {SCHEMA_VERSION}"
        )
    for name in _NESTED:
        if name in fields:
            fields[name] = from_json(fields[name])
    for name in _TIMES:  # on the clock of the scripts, which differed from Redis's by the offset at admission
        if name in fields:
            fields[name] = float(fields[name]) - float(fields["clock_offset"])
    return JobRecord.model_validate(fields)
