"""Errors that end a worker."""

from __future__ import annotations


class WorkerError(Exception):
    """A setting that cannot work; the message names it, its value and the problem."""


class StepTimeout(Exception):
    """The device hangs. Only the end of the process ends the step."""
