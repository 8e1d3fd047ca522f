"""From a module to a graph that compilers read."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from msf_engine.guided_step import StepModule
from msf_engine.plan import PlanSpec
from msf_engine.precision import low_denoiser
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.model import DecodeModule

STEP_INPUTS = ("x", "d_prev", "cond", "time_embedding", "labels", "w", "a", "b", "c")
STEP_OUTPUTS = ("d", "x_next")
DECODE_INPUTS = ("base", "residual")
DECODE_OUTPUTS = ("pixels",)


def input_names(stage: Stage) -> tuple[str, ...]:
    return DECODE_INPUTS if stage is Stage.DECODE else STEP_INPUTS


def output_names(stage: Stage) -> tuple[str, ...]:
    return DECODE_OUTPUTS if stage is Stage.DECODE else STEP_OUTPUTS


def export_program(spec: PlanSpec, module: nn.Module, batch: int | None = None) -> ExportedProgram:
    """The module's graph by `torch.export`, for one batch, or without one for any."""
    example = spec.example(batch or 3)
    dynamic = None if batch else tuple({0: Dim.DYNAMIC} for _ in example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch that we cannot mend
        return torch.export.export(module, example, dynamic_shapes=dynamic)


def export_onnx(spec: PlanSpec, module: nn.Module, file: Path) -> None:
    """Write the module as ONNX for any batch, the weights beside it: a protobuf cannot hold more than 2 GB."""
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            export_program(spec, module),
            dynamo=True,
            input_names=input_names(spec.stage),
            output_names=output_names(spec.stage),
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=True)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the loggers' tales of every constant, and of torchvision, which is not needed."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def lowered(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose network multiplies in `dtype`; guidance, the solver's update and pixels stay in float32."""
    if isinstance(module, StepModule):
        device = next(module.parameters()).device
        return StepModule(low_denoiser(module.denoiser, dtype, device), guided=module.guided).eval()
    module = copy.deepcopy(module)
    module.autoencoder = _LowAutoencoder(module.get_submodule("autoencoder").to(dtype), dtype)
    return module


class Levels(nn.Module):
    """The decoder without its last cast, for converters that know no uint8."""

    def __init__(self, decode: DecodeModule) -> None:
        super().__init__()
        self.decode = decode

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return self.decode.levels(base, residual)


class _LowAutoencoder(nn.Module):
    """An autoencoder that decodes float32."""

    def __init__(self, autoencoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.dtype = dtype

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.autoencoder.decode(latents.to(self.dtype))  # type: ignore[operator]
        return images.float()
