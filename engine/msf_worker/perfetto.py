"""Timeline of a worker, in the trace-event format that Perfetto (https://ui.perfetto.dev) and Chrome open."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msf_scheduler.step_batching import StepBatch
from msf_worker.errors import WorkerError

logger = logging.getLogger(__name__)


class PerfettoTrace:
    """Trace file of one worker. The format needs no closing bracket, so the file of a killed worker opens too.

    A full disk ends the file, and not the worker.
    """

    def __init__(self, folder: Path, worker_id: str) -> None:
        """Raise WorkerError if the file cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{worker_id}.json").open("w", buffering=1)
            self._file.write("[\n")
        except OSError as error:
            raise WorkerError(f"MSF_TRACE_DIR={str(folder)!r}: {error.strerror}") from error

    def record(self, batch: StepBatch, job_ids: Sequence[str], started_at: float, seconds: float) -> None:
        """Write one step batch; `started_at` is in seconds of any one clock. The gaps are the device's waits."""
        event = {
            "name": f"{batch.stage} x{len(batch.slots)}",
            "ph": "X",
            "pid": os.getpid(),
            "tid": 0,
            "ts": round(1e6 * started_at),
            "dur": round(1e6 * seconds),
            "args": {
                "model": "/".join(batch.model),
                "reason": batch.reason,
                "rows": batch.num_rows,
                "bucket": batch.bucket,
                "jobs": job_ids,
            },
        }
        if not self._file.closed:
            try:
                self._file.write(f"{json.dumps(event)},\n")
            except OSError as error:
                logger.warning("the timeline %s ends here: %s", self._file.name, error.strerror)
                self.close()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of what was not written yet
            self._file.close()
