"""How a job lies in Redis: a hash, as scripts change single fields and Lua's JSON would round large integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msf_scheduler.errors import SchedulerError
from msf_scheduler.jobs import (
    Delivery,
    JobError,
    JobRecord,
    JobSpec,
    JobState,
    Progress,
    Provenance,
    Terms,
    Timings,
)

SCHEMA_VERSION = 1


def decode_job(fields: Mapping[bytes, bytes] | Sequence[bytes]) -> JobRecord:
    """A record from its hash, given as a mapping or as scripts return it: name, value, name, value, …"""
    if not isinstance(fields, Mapping):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    schema_version = int(fields[b"schema_version"])
    if schema_version != SCHEMA_VERSION:
        job_id = fields[b"id"].decode()
        raise SchedulerError(f"job {job_id} has schema_version {schema_version}, we read {SCHEMA_VERSION}")
    offset = float(fields[b"clock_offset"])
    timings = fields.get(b"timings")
    error = fields.get(b"error")
    images_of = fields.get(b"images_of")
    leader = fields.get(b"leader")
    progress = fields.get(b"progress")
    bound = fields.get(b"bound")
    provenance = fields.get(b"provenance")
    delivery = fields.get(b"delivery")
    return JobRecord(
        schema_version=schema_version,
        id=fields[b"id"].decode(),
        spec=JobSpec.model_validate_json(fields[b"spec"]),
        terms=Terms.model_validate_json(fields[b"terms"]),
        state=JobState(fields[b"state"].decode()),
        attempt=int(fields[b"attempt"]),
        admitted_at=float(fields[b"admitted_at"]) - offset,
        deadline_at=_time(fields.get(b"deadline_at"), offset),
        claimed_at=_time(fields.get(b"claimed_at"), offset),
        finished_at=_time(fields.get(b"finished_at"), offset),
        is_suspect=fields.get(b"suspect") == b"1",
        bound_to=bound.decode() if bound else None,
        leader=leader.decode() if leader else None,
        is_watched=fields.get(b"watched") == b"1",
        progress=Progress.model_validate_json(progress) if progress else None,
        images_of=images_of.decode() if images_of else None,
        provenance=Provenance.model_validate_json(provenance) if provenance else None,
        delivery=Delivery.model_validate_json(delivery) if delivery else None,
        timings=Timings.model_validate_json(timings) if timings else None,
        error=JobError.model_validate_json(error) if error else None,
    )


def _time(field: bytes | None, offset: float) -> float | None:
    """Unix seconds of a time on the scripts' clock, whose difference from Redis's at admission is `offset`."""
    return None if field is None else float(field) - offset
