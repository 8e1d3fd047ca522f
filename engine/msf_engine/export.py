"""Graphs of modules in the forms that compilers read."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from msf_engine.plan import PlanSpec
from msf_scheduler.stage import Stage

DENOISER_INPUTS = ("x", "time_embedding", "labels", "cond")
DECODE_INPUTS = ("base", "residual")


def input_names(spec: PlanSpec) -> tuple[str, ...]:
    """Return the names of a graph's inputs, in order."""
    if spec.stage is not Stage.DECODE:
        return DENOISER_INPUTS[: len(spec.inputs)]
    return DECODE_INPUTS if len(spec.inputs) == len(DECODE_INPUTS) else ("latents",)


def output_name(stage: Stage) -> str:
    """Return the name of a graph's output."""
    return "pixels" if stage is Stage.DECODE else "velocity"


def export_program(spec: PlanSpec, module: nn.Module, batch: int | None = None) -> ExportedProgram:
    """Return the graph of the module for one batch size, or for any if `batch` is None."""
    example = tuple(torch.from_numpy(array) for array in spec.zeros(batch or 3))
    dynamic = None if batch else tuple({0: Dim.DYNAMIC} for _ in example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch
        return torch.export.export(module, example, dynamic_shapes=dynamic)


def export_onnx(spec: PlanSpec, module: nn.Module, file: Path) -> None:
    """Write the module as ONNX for any batch, the weights in a second file: a protobuf holds at most 2 GB."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they report every constant, and that torchvision is missing
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            export_program(spec, module),
            dynamo=True,
            input_names=input_names(spec),
            output_names=[output_name(spec.stage)],
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=True)
