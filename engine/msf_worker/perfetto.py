"""Timeline of a worker, in the trace-event format that Perfetto (https://ui.perfetto.dev) and Chrome open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from msf_scheduler.legacy_step_batching import StepBatch
from msf_worker.step_outcome import BatchMember


class PerfettoTrace:
    """Trace file of one worker. The format needs no closing bracket, so the file of a killed worker opens too."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{worker_id}.json").open("w", buffering=1)
        self._file.write("[\n")

    def record(self, batch: StepBatch, members: Sequence[BatchMember], started_at: float, seconds: float) -> None:
        """Write one step batch; `started_at` is in seconds of any one clock."""
        event = {
            "name": f"{batch.stage}{' guided' if batch.guided else ''} x{len(batch.slots)}",
            "ph": "X",
            "pid": os.getpid(),
            "tid": 0,
            "ts": round(1e6 * started_at),
            "dur": round(1e6 * seconds),
            "args": {
                "model": "/".join(batch.model),
                "reason": batch.reason,
                "bucket": batch.bucket,
                "members": [member._asdict() for member in members],
            },
        }
        self._file.write(f"{json.dumps(event)},\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
