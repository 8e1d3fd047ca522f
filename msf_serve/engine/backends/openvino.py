"""OpenVINO on a CPU: one static plan for each bucket, exported once with a dynamic batch and then reshaped."""

from __future__ import annotations

import logging
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from msf_serve.engine.backends import Plan, Precision
from msf_serve.engine.config import Stage
from msf_serve.engine.errors import BackendUnavailable, PlanError
from msf_serve.engine.plans import PlanCache, PlanSpec

try:
    import openvino as ov
except ImportError as error:
    raise BackendUnavailable("backend openvino needs OpenVINO: pip install 'msf-serve[worker]'") from error

logger = logging.getLogger(__name__)


class OpenVinoBackend:
    """Denoising in bfloat16 where the CPU multiplies it natively, else in float32; `precision` overrides.

    Decoding is in float32: bfloat16 costs up to two grey levels there and wins no time on small images.
    """

    name = "openvino"

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self._core = ov.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision: Precision = precision or ("bf16" if "BF16" in capabilities else "fp32")
        if self.precision == "bf16" and "BF16" not in capabilities:
            raise BackendUnavailable("precision bf16 is not native on this CPU; allowed: fp32")
        self._device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self._num_threads = num_threads
        self._converted: dict[PlanSpec, Any] = {}

    @property
    def fingerprint(self) -> str:
        return (
            f"openvino {self.precision} {ov.get_version()} {platform.machine()} {self._device} "
            f"{self._num_threads} threads torch {torch.__version__}"
        )

    def plan(self, spec: PlanSpec, source: Callable[[], nn.Module], cache: PlanCache) -> Plan:
        blob = cache.get(spec, self.fingerprint)
        if blob is not None:
            try:
                # Without the config an imported plan runs in another precision than it was compiled for.
                return self._runner(self._core.import_model(blob, "CPU", self._config(spec)))
            except RuntimeError as error:
                logger.warning("cached plan %s cannot be loaded and is built again: %s", spec, error)
        started_at = time.monotonic()
        compiled = self._compile(spec, source)
        logger.info("compiled plan %s in %.1f s", spec, time.monotonic() - started_at)
        cache.put(spec, self.fingerprint, compiled.export_model().getvalue())
        return self._runner(compiled)

    def _compile(self, spec: PlanSpec, source: Callable[[], nn.Module]) -> Any:
        model = self._convert(spec, source).clone()
        shapes = [ov.PartialShape([spec.bucket, *shape]) for shape, _ in spec.inputs]
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        return self._core.compile_model(model, "CPU", self._config(spec))

    def _config(self, spec: PlanSpec) -> dict[str, str | int]:
        low = self.precision == "bf16" and spec.stage is not Stage.DECODE
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
            "INFERENCE_NUM_THREADS": self._num_threads,
            "NUM_STREAMS": 1,
        }

    def _convert(self, spec: PlanSpec, source: Callable[[], nn.Module]) -> Any:
        """OpenVINO's form of the module with a dynamic batch; buckets share it."""
        any_batch = spec.at_bucket(0)
        if any_batch not in self._converted:
            example = spec.example(batch=3)
            dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # deprecations between torch and OpenVINO that we cannot mend
                program = torch.export.export(source(), example, dynamic_shapes=dynamic)
                self._converted[any_batch] = ov.convert_model(program)
        return self._converted[any_batch]

    def _runner(self, compiled: Any) -> Plan:
        request = compiled.create_infer_request()
        outputs = [request.get_output_tensor(index) for index in range(len(compiled.outputs))]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            try:
                request.infer([tensor.numpy() for tensor in inputs], share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise PlanError(f"OpenVINO failed to run a plan: {error}") from error
            return tuple(torch.from_numpy(output.data.copy()) for output in outputs)

        return run
