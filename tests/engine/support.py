"""The mathematics and the modules that tests compare plans with, and samples driven through an executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from msf_engine.config import ModelConfig
from msf_engine.executor import Executor, SampleRequest
from msf_engine.model import DecodeModule, MsfModel
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Array, FunctionPlan, Plan, PlanSpec, run, stage_inputs
from msf_engine.plan_validation import ValidationInputs, make_validation_inputs
from msf_engine.repository import ModelVersion
from msf_engine.schedule import Schedule, Solver
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

Image = NDArray[np.uint8]


def network_of(model: MsfModel, stage: Stage) -> nn.Module:
    """Return the network that a stage's plan is compiled from."""
    return (DecodeModule(model) if stage is Stage.DECODE else model.denoiser(stage)).eval()


def spec_of(model: MsfModel, stage: Stage, *buckets: int) -> PlanSpec:
    """Return the spec of a stage's plan."""
    return PlanSpec("tiny:1", "weights", stage, buckets, stage_inputs(model.config, stage))


def inputs_of(version: ModelVersion, stage: Stage) -> ValidationInputs:
    """Return the inputs that validate a stage's plan."""
    weights = version.read_time_embeddings()
    embed = None
    if stage is not Stage.DECODE:
        embed = HostTimeEmbedding.of(weights[stage], version.config.stage(stage).denoiser.time)
    return make_validation_inputs(stage_inputs(version.config, stage), version.config.num_classes, embed)


def integrate(network: Callable[[Tensor, float], Tensor], x: Tensor, schedule: Schedule, solver: Solver) -> Tensor:
    """Carry `x` through a schedule's steps by the output of `network(x, t)`."""
    d_prev = x.new_zeros(x.shape)
    for t, (a, b, c) in zip(schedule.times.tolist(), schedule.updates(solver).tolist(), strict=True):
        d = network(x, t)
        x = a * x + b * d + c * d_prev
        d_prev = d
    return x


def stages_of(request: SampleRequest) -> list[Stage]:
    """Return the stage of each step that a sample needs."""
    stages = (Stage.DENOISE,) if len(request.num_steps) == 1 else (Stage.BASE, Stage.RESIDUAL)
    pairs = zip(stages, request.num_steps, strict=True)
    return [*(stage for stage, count in pairs for _ in range(count)), Stage.DECODE]


def run_to_end(executor: Executor, samples: dict[int, SampleRequest]) -> dict[int, Image]:
    """Advance samples that have just joined, by slot, each with all others of its stage; return their images."""
    remaining = {slot: stages_of(request) for slot, request in samples.items()}
    images: dict[int, Image] = {}
    while len(images) < len(samples):
        stage = next(stages[0] for stages in remaining.values() if stages)
        members = [slot for slot, stages in remaining.items() if stages and stages[0] is stage]
        for slot in members:
            remaining[slot].pop(0)
        images |= executor.step(members).images
    return images


def by_row(plan: Plan) -> Callable[..., Array]:
    """Return a function that runs each row of its batch alone."""

    def compute(*inputs: Array) -> Array:
        rows = range(len(inputs[0]))
        return np.concatenate([run(plan, [array[row : row + 1] for array in inputs]) for row in rows])

    return compute


def row_by_row(plans: ModelPlans) -> ModelPlans:
    """Return plans that compute each row alone: its bytes are the same in every batch."""
    buckets = dict.fromkeys(plans.by_stage, (1, 2, 4, 8))
    by_stage: dict[Stage, Plan] = {
        stage: FunctionPlan(PlanSpec("", "", stage, (), stage_inputs(plans.config, stage)), by_row(plan))
        for stage, plan in plans.by_stage.items()
    }
    return replace(plans, buckets=buckets, strict=buckets, by_stage=by_stage)


def fitted(requests: Sequence[SampleRequest], config: ModelConfig) -> list[SampleRequest]:
    """Return the requests with steps for as many stages as the model has."""
    return [replace(request, num_steps=request.num_steps[: len(config.stages)]) for request in requests]
