"""From a module to a graph that compilers read."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from msf_serve.engine.plans import PlanSpec


def export_program(spec: PlanSpec, module: nn.Module) -> ExportedProgram:
    """The module's graph with a dynamic batch, by `torch.export`."""
    example = spec.example(batch=3)
    dynamic = tuple({0: Dim.DYNAMIC} for _ in example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch that we cannot mend
        return torch.export.export(module, example, dynamic_shapes=dynamic)
