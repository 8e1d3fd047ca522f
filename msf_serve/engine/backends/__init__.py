"""Backends turn the model's modules into plans. One Protocol; a backend's libraries are imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor, nn

from msf_serve.engine.plans import PlanCache, PlanSpec

Precision = Literal["fp32", "bf16"]
BACKENDS = ("eager", "openvino", "noop")


class Plan(Protocol):
    """A compiled artefact, ready to run: tensors of exactly the bucket's batch in, tensors out, all on the host."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


class Backend(Protocol):
    """Makes plans. `fingerprint` names all that a plan depends on beside the model: libraries, precision, device."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def plan(self, spec: PlanSpec, source: Callable[[], nn.Module], cache: PlanCache) -> Plan:
        """The plan of `spec`, from `cache` where it can be; `source` builds the module when it must be compiled."""
        ...


def get_backend(name: str, precision: Precision | None, num_threads: int) -> Backend:
    """The backend called `name`. Raises BackendUnavailable that says what to install, ValueError for other names."""
    if name == "eager":
        from msf_serve.engine.backends.eager import EagerBackend

        return EagerBackend(precision or "fp32", num_threads)
    if name == "openvino":
        from msf_serve.engine.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(precision, num_threads)
    if name == "noop":
        from msf_serve.engine.backends.noop import NoopBackend

        return NoopBackend()
    raise ValueError(f"backend {name!r} is unknown; allowed: {', '.join(BACKENDS)}")
