"""The mathematics and the modules that tests compare plans with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msf_engine.guided_step import StepModule
from torch import Tensor, nn

from msf_engine.model import DecodeModule, MsfModel
from msf_engine.plan import PlanSpec, stage_inputs
from msf_engine.schedule import Solver, updates
from msf_scheduler.stage import Stage


def module_of(model: MsfModel, stage: Stage, *, guided: bool = True) -> nn.Module:
    """Return the module that the plans of a stage are compiled from."""
    if stage is Stage.DECODE:
        return DecodeModule(model).eval()
    return StepModule(model.denoiser(stage), guided=guided).eval()


def spec_of(model: MsfModel, stage: Stage, *buckets: int) -> PlanSpec:
    """Return the spec of a plan of the stage, guided except for the decoder."""
    inputs = stage_inputs(model.config, stage)
    return PlanSpec("tiny:1", "weights", stage, stage is not Stage.DECODE, buckets, inputs)


def integrate(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float], solver: Solver) -> Tensor:
    """Carry `x` from times[0] to times[-1] along `velocity(x, t)`."""
    d_prev = x.new_zeros(x.shape)
    for t, update in zip(times, updates(solver, times), strict=False):
        d = velocity(x, t)
        x = update.a * x + update.b * d + update.c * d_prev
        d_prev = d
    return x
