"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, describe_options
from msf_engine.denoiser import Denoiser
from msf_engine.device import cpu_fingerprint, cpu_name, gpu_fingerprint
from msf_engine.device_plan import DevicePlan
from msf_engine.options import DEFAULT_BUCKETS
from msf_engine.plan import Array, FunctionPlan, Plan, PlanSpec
from msf_engine.precision import DTYPES, low_denoiser
from msf_scheduler.stage import Stage


class EagerBackend:
    """Runs on the first NVIDIA GPU if there is one, else on the CPU. It compiles nothing, so nothing is cached.

    The decoder is in float32 with any precision.
    """

    name: BackendName = "eager"
    buckets: tuple[int, ...] = DEFAULT_BUCKETS
    runs_here = True
    needs_warm_up = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.precision: Precision = precision or "fp32"
        self.on_gpu = torch.cuda.is_available()
        self.torch_device = torch.device("cuda" if self.on_gpu else "cpu")
        self.device = torch.cuda.get_device_name() if self.on_gpu else cpu_name()
        self.options: dict[str, object] = {}
        if self.on_gpu:
            # Torch rounds the decoder's convolutions to TF32 by default: fast, but not a reference.
            self.options["tf32"] = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self._num_threads = num_threads

    @property
    def fingerprint(self) -> str:
        device = gpu_fingerprint() if self.on_gpu else cpu_fingerprint(self._num_threads)
        options = describe_options(self.options)
        return " ".join(filter(None, (self.name, self.precision, f"torch {torch.__version__}", device, options)))

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, "fp32" if stage is Stage.DECODE else self.precision)

    def compile(self, spec: PlanSpec, network: nn.Module, folder: Path) -> None:
        """Compile nothing."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        network = self._compiled(self._placed(source()))

        def compute(*inputs: Array) -> Array:
            with torch.inference_mode():
                output: Tensor = network(*(torch.from_numpy(array) for array in inputs))
            return output.numpy()

        return DevicePlan(spec, network, self.torch_device) if self.on_gpu else FunctionPlan(spec, compute)

    def _compiled(self, network: nn.Module) -> nn.Module:
        return network

    def _placed(self, network: nn.Module) -> nn.Module:
        """Move the network to the device; a denoiser in low precision as a copy."""
        if self.precision == "fp32" or not isinstance(network, Denoiser):
            return network.to(self.torch_device)
        return low_denoiser(network, DTYPES[self.precision], self.torch_device)


BACKEND = EagerBackend
