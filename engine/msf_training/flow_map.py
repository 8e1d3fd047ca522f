"""Flow maps: a teacher's network, told the interval to cross and the guidance scale, learns to jump along trajectories.

u(x_t, t, t - r, w) is the average velocity of the teacher's guided trajectory from t to r (MeanFlow, arXiv 2505.13447),
so that x_r = x_t + (r - t) u. It is regressed on trajectories that the teacher has made (as in knowledge distillation,
arXiv 2101.02388, between any two of their states), which takes no derivative and no second network during training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msf_engine.denoiser import Denoiser
from msf_engine.time_embedding import TIME_FEATURES
from msf_training.mixed_precision import autocast
from msf_training.trajectories import Trajectories

HUBER_SCALE = 0.03


@dataclass(frozen=True)
class FlowMapObjective:
    """Batch size, the number of steps that half of the batch trains for, and the noise level of the condition."""

    batch_size: int
    num_steps: int
    cond_level: float


def make_flow_map(teacher: Denoiser) -> Denoiser:
    """Return a flow map that predicts the teacher's velocity, until it is trained: what it is told has weight 0."""
    weights = teacher.state_dict()
    first = "time.layers.0.weight"  # (D, 256 x number of inputs)
    num_columns = 2 * TIME_FEATURES  # interval and guidance scale
    flow_map = Denoiser(teacher.config, is_flow_map=True)
    flow_map.load_state_dict({**weights, first: F.pad(weights[first], (0, num_columns))})
    return flow_map


def flow_map_loss(
    flow_map: Denoiser, trajectories: Trajectories, objective: FlowMapObjective, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Return the loss of one batch: jumps along trajectories, by the pseudo-Huber distance (arXiv 2310.14189)."""
    device = next(flow_map.parameters()).device
    rows = torch.randint(len(trajectories.labels), (objective.batch_size,), generator=generator)
    starts, ends = draw_jumps(trajectories.num_steps, objective, generator)
    t, r = trajectories.times[rows, starts], trajectories.times[rows, ends]  # (B,)
    noisy = trajectories.states[rows, starts]  # (B, C, h, w)
    target = (noisy - trajectories.states[rows, ends]) / (t - r)[:, None, None, None]
    inputs = (t, torch.full_like(t, objective.cond_level), t - r, trajectories.guidance_scales[rows])
    embedding = flow_map.time(*(values.to(device) for values in inputs))
    with autocast(device):
        labels, cond = trajectories.labels[rows].to(device), trajectories.cond[rows].to(device)
        velocity = flow_map(noisy.to(device), embedding, labels, cond).float()
    error = (velocity - target.to(device)).square().mean((1, 2, 3))
    distance = (error + HUBER_SCALE**2).sqrt() - HUBER_SCALE
    return {"loss": distance.mean(), "error": error.detach().mean()}


def draw_jumps(num_states: int, objective: FlowMapObjective, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the first and last state of each jump (B,): a step of a schedule that divides the trajectory evenly.

    Half of the schedules have the objective's number of steps, the others any.
    """
    size = objective.batch_size
    divisors = torch.tensor([number for number in range(1, num_states + 1) if num_states % number == 0])
    num_steps = divisors[torch.randint(len(divisors), (size,), generator=generator)]
    is_default = torch.rand(size, generator=generator) < 0.5
    num_steps = num_steps.masked_fill(is_default, objective.num_steps)
    steps = (torch.rand(size, generator=generator) * num_steps).long()
    length = num_states // num_steps
    return steps * length, (steps + 1) * length
