"""OpenVINO on a CPU: one static plan for each bucket, exported once with a dynamic batch and then reshaped."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, check_precision, describe_options
from msf_engine.errors import BackendUnavailable, PlanError
from msf_engine.export import export_program
from msf_engine.plan import Plan, PlanSpec
from msf_scheduler.stage import Stage

# OpenVINO's converter reports each use to Google Analytics unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
try:
    import openvino as ov
except ImportError as error:
    raise BackendUnavailable("backend openvino needs OpenVINO: pip install 'msf-serve[worker]'") from error


class OpenVinoBackend:
    """By default denoises in bfloat16 if the CPU multiplies it natively, else in float32.

    It decodes in float32: bfloat16 costs up to two grey levels there and saves no time on small images.
    """

    name: BackendName = "openvino"
    one_plan_for_all_buckets = False
    runs_here = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self._core = ov.Core()
        native = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = check_precision(self.name, precision, ("bf16", "fp32") if native else ("fp32",))
        self.device: str = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self._num_threads = num_threads
        self._converted: dict[PlanSpec, Any] = {}

    @property
    def fingerprint(self) -> str:
        libraries = f"{ov.get_version()} torch {torch.__version__}"
        options = f"{describe_options(self.options(Stage.BASE))} decode {describe_options(self.options(Stage.DECODE))}"
        return f"{self.name} {self.precision} {libraries} {platform.machine()} {self.device} {options}"

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, self._precision(stage))

    def compile(self, spec: PlanSpec, module: nn.Module) -> bytes:
        model = self.static_model(spec, module)
        artefact: bytes = self._core.compile_model(model, "CPU", self.options(spec.stage)).export_model().getvalue()
        return artefact

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        try:
            # Without the options an imported plan runs in another precision than it was compiled for.
            return _runner(self._core.import_model(artefact, "CPU", self.options(spec.stage)))
        except RuntimeError as error:
            raise PlanError(f"OpenVINO cannot load plan {spec}: {error}") from error

    def _precision(self, stage: Stage) -> Precision:
        return "fp32" if stage is Stage.DECODE else self.precision

    def options(self, stage: Stage) -> dict[str, str | int]:
        """Return OpenVINO's properties for a stage's plans."""
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self._precision(stage) == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self._num_threads,
            "NUM_STREAMS": 1,
        }

    def static_model(self, spec: PlanSpec, module: nn.Module) -> Any:
        """Return OpenVINO's form of the module for the spec's bucket."""
        (bucket,) = spec.buckets
        model = self.dynamic_model(spec, module).clone()
        shapes = [ov.PartialShape([bucket, *shape]) for shape, _ in spec.inputs]
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        return model

    def dynamic_model(self, spec: PlanSpec, module: nn.Module) -> Any:
        """Return OpenVINO's form of the module for any batch; buckets share it."""
        any_batch = replace(spec, buckets=())
        if any_batch not in self._converted:
            program = export_program(spec, module)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations between torch and OpenVINO
                self._converted[any_batch] = ov.convert_model(program)
        return self._converted[any_batch]


def _runner(compiled: Any) -> Plan:
    """Return a plan over the memory of one request: setting new tensors at each call takes longer than copying."""
    request = compiled.create_infer_request()
    inputs = [request.get_input_tensor(index).data for index in range(len(compiled.inputs))]
    outputs = [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        for array, tensor in zip(inputs, tensors, strict=True):
            np.copyto(array, tensor.numpy())
        try:
            request.infer()
        except RuntimeError as error:
            raise PlanError(f"OpenVINO failed to run a plan: {error}") from error
        return tuple(torch.from_numpy(array.copy()) for array in outputs)

    return run


BACKEND = OpenVinoBackend
