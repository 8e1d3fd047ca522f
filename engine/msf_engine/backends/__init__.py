"""Backends turn a model's modules into plans. A backend's libraries are imported when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from msf_engine.device import has_gpu
from msf_engine.errors import INSTALL, BackendUnavailable
from msf_engine.options import BACKENDS, BackendName, Precision
from msf_engine.plan import Plan, PlanSpec
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BACKENDS", "Backend", "BackendName", "Precision", "check_precision", "default_backends", "get_backend"]


class Backend(Protocol):
    """Compiler and runtime of plans.

    `fingerprint` begins with the backend's name and lists everything that a plan's output depends on besides the
    model: library versions, precision, device, compile options. `device` is the hardware, for people; `buckets` are the
    numbers of rows at which plans run by default. Unless `runs_here`, plans can be compiled but not loaded. With
    `needs_warm_up`, the first batch of each bucket takes much longer than the others.
    """

    name: BackendName
    precision: Precision
    device: str
    buckets: tuple[int, ...]
    runs_here: bool
    needs_warm_up: bool

    @property
    def fingerprint(self) -> str: ...

    def tolerance(self, stage: Stage) -> float:
        """Return the largest error of a `Validation` that is accepted."""
        ...

    def compile(self, spec: PlanSpec, network: nn.Module, folder: Path) -> None:
        """Write the plan's files, if there are any, into an empty folder. Raises PlanError."""
        ...

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        """Return the plan, ready to run; `source` builds the network, for backends that run it. Raises PlanError."""
        ...


def get_backend(name: BackendName, precision: Precision | None, num_threads: int) -> Backend:
    """Return the backend `name`; without a precision, in the fastest of the device.

    Raises BackendUnavailable when a library is missing, ValueError for an unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; allowed: {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise BackendUnavailable(f"backend {name} needs {error.name}. {INSTALL}") from error
    create = cast(Callable[[Precision | None, int], Backend], module.BACKEND)
    return create(precision, num_threads)


def default_backends() -> tuple[BackendName, ...]:
    """Return the backends that suit this machine's device, best first."""
    return ("tensorrt", "inductor") if has_gpu() else ("openvino", "inductor", "eager")


def check_precision(backend: str, precision: Precision | None, allowed: tuple[Precision, ...]) -> Precision:
    """Return `precision` if it is allowed, the first allowed one for None. Raises BackendUnavailable."""
    if precision is not None and precision not in allowed:
        raise BackendUnavailable(
            f"backend {backend} has no precision {precision} on this machine; allowed: {', '.join(allowed)}"
        )
    return precision or allowed[0]


def describe_options(options: Mapping[str, object]) -> str:
    """Return compile options in the form that fingerprints have."""
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))
