"""A worker's time line, in the trace-event format that Perfetto (https://ui.perfetto.dev) and Chrome open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from msf_scheduler.step_batching import StepBatch


class Trace:
    """Writes a file of one worker; what a killed worker wrote can still be opened, as the format wants no end."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{worker_id}.json").open("w", buffering=1)
        self._file.write("[\n")

    def record(
        self, batch: StepBatch, riders: Sequence[Mapping[str, str | int]], started_at: float, ended_at: float
    ) -> None:
        """One step batch; times in seconds on any one clock."""
        event = {
            "name": f"{batch.stage}{' guided' if batch.guided else ''} x{len(batch.slots)}",
            "ph": "X",
            "pid": os.getpid(),
            "tid": 0,
            "ts": round(1e6 * started_at),
            "dur": round(1e6 * (ended_at - started_at)),
            "args": {"model": "/".join(batch.model), "reason": batch.reason, "bucket": batch.bucket, "riders": riders},
        }
        self._file.write(f"{json.dumps(event)},\n")

    def close(self) -> None:
        self._file.close()
