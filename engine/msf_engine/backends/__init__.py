"""Backends turn the model's modules into plans. One Protocol; a backend's libraries are imported when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import nn

from msf_engine.errors import BackendUnavailable
from msf_engine.options import BACKENDS, BackendName, Precision
from msf_engine.plan import Plan, PlanSpec
from msf_scheduler.stage import Stage

__all__ = ["BACKENDS", "Backend", "BackendName", "Precision", "check_precision", "default_backends", "get_backend"]


class Backend(Protocol):
    """Makes plans.

    `fingerprint` begins with the backend's name and names all that a plan depends on beside the model: libraries,
    precision, device, threads. `device` is the hardware, for people. Where `one_plan_for_all_buckets`, a spec has
    several buckets. Where not `runs_here`, plans can be compiled but not loaded.
    """

    name: BackendName
    precision: Precision
    device: str
    one_plan_for_all_buckets: bool
    runs_here: bool

    @property
    def fingerprint(self) -> str: ...

    def tolerance(self, stage: Stage) -> float:
        """The largest error of `trials.Trial` that is accepted."""
        ...

    def compile(self, spec: PlanSpec, module: nn.Module) -> bytes:
        """The plan's artefact; empty where there is nothing to keep. Raises PlanError."""
        ...

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        """The plan, ready to run; `source` builds the module for those that run it as it is. Raises PlanError."""
        ...


class _BackendClass(Protocol):
    def __call__(self, precision: Precision | None, num_threads: int) -> Backend: ...


def get_backend(name: BackendName, precision: Precision | None, num_threads: int) -> Backend:
    """The backend called `name`; without a precision, in the fastest that the device has.

    Raises BackendUnavailable that says what is missing, ValueError for other names.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; allowed: {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__name__}.{name}")
    return cast(_BackendClass, module.BACKEND)(precision, num_threads)


def default_backends() -> tuple[BackendName, ...]:
    """What this machine's device is served with, the first choice first."""
    return ("tensorrt", "inductor") if torch.cuda.is_available() else ("openvino", "inductor", "eager")


def check_precision(backend: str, precision: Precision | None, allowed: tuple[Precision, ...], why: str) -> Precision:
    """`precision` if it is allowed, the first of the allowed without one. Raises BackendUnavailable."""
    if precision is not None and precision not in allowed:
        raise BackendUnavailable(f"backend {backend} has no precision {precision} {why}; allowed: {', '.join(allowed)}")
    return precision or allowed[0]
