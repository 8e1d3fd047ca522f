"""What keeps a worker from working."""

from __future__ import annotations


class WorkerError(Exception):
    """The message names the setting, its value and what is wrong."""


class StepTimeout(Exception):
    """The device hangs; the process must end, as nothing else can."""
