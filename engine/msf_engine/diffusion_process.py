"""The process that a denoiser was trained to revert, as `config.json` describes it, and the schedules that follow.

"process": {"kind": "flow", "prediction": "velocity", "data_at": 0, "shift": 1.0}
"process": {"kind": "variance_preserving", "prediction": "epsilon", "num_train_timesteps": 1000,
            "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "timestep_spacing": "leading",
            "steps_offset": 0, "set_alpha_to_one": true}
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from msf_engine.frozen_config import FrozenConfig
from msf_engine.schedule import Floats, Schedule, Solver, flow_schedule, flow_times

Beta = Annotated[float, Field(gt=0, lt=1)]


class FlowProcess(FrozenConfig):
    """Flow matching along the straight path x = (1 - t) data + t noise, t in [0, 1]; the network predicts dx/dt.

    `data_at` is the network's time of data: at 0 (SD3, REPA) its velocity is noise - data; at 1 (SiT, LightningDiT)
    time runs the other way, and the velocity is data - noise. `shift` > 1 puts more steps near the noise.
    """

    kind: Literal["flow"] = "flow"
    prediction: Literal["velocity"] = "velocity"
    data_at: Literal[0, 1] = 0
    shift: Annotated[float, Field(gt=0)] = 1.0

    solvers: ClassVar[tuple[Solver, ...]] = ("euler", "ab2", "flow_map")

    @property
    def max_num_steps(self) -> float:
        return float("inf")

    def schedule(self, num_steps: int) -> Schedule:
        """Return the steps from noise to data."""
        return flow_schedule(flow_times(num_steps, self.shift), self.data_at)


class VariancePreservingProcess(FrozenConfig):
    """DDPM's process x = alpha data + sigma noise, alpha² + sigma² = 1; the network predicts the noise.

    Its time is an integer timestep, of `num_train_timesteps`. Fields have the names and meaning of diffusers'
    `DDIMScheduler`; learned variances and added noise (eta > 0) are not supported.
    """

    kind: Literal["variance_preserving"] = "variance_preserving"
    prediction: Literal["epsilon"] = "epsilon"
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: Annotated[int, Field(ge=0)] = 0  # added to each timestep if the spacing is leading
    set_alpha_to_one: bool = True  # whether the last step ends at the data, or at the noise of timestep 0

    solvers: ClassVar[tuple[Solver, ...]] = ("ddim", "ab2")

    @property
    def max_num_steps(self) -> float:
        """Most steps that have different timesteps, all of them known to the network."""
        offset = self.steps_offset if self.timestep_spacing == "leading" else 0
        return self.num_train_timesteps // (1 + offset)

    def schedule(self, num_steps: int) -> Schedule:
        """Return the steps from noise to data, at the timesteps of diffusers' `DDIMScheduler`."""
        if not 1 <= num_steps <= self.max_num_steps:
            raise ValueError(f"num_steps must be from 1 to {self.max_num_steps}, got {num_steps}")
        starts = self._timesteps(num_steps)
        ends = starts - self.num_train_timesteps // num_steps  # not the next start, unless timesteps are evenly spaced
        last = 1.0 if self.set_alpha_to_one else self._alphas_cumprod[0]
        (s_start, u_start), (s_end, u_end) = (
            (np.sqrt(alphas), np.sqrt(1 / alphas - 1))
            for alphas in (
                self._alphas_cumprod[starts],
                np.where(ends < 0, last, self._alphas_cumprod[np.maximum(ends, 0)]),
            )
        )
        times = starts.astype(np.float64)
        return Schedule(times, times / self.num_train_timesteps, s_start, s_end, u_start, u_end, 0.0)

    def _timesteps(self, num_steps: int) -> NDArray[np.intp]:
        total, steps = self.num_train_timesteps, np.arange(num_steps)
        match self.timestep_spacing:
            case "leading":
                return total // num_steps * steps[::-1] + self.steps_offset
            case "trailing":
                return np.round(total - total / num_steps * steps).astype(np.intp) - 1
            case "linspace":
                return np.linspace(0, total - 1, num_steps).round()[::-1].astype(np.intp)

    @cached_property
    def _alphas_cumprod(self) -> Floats:
        """Return alpha² by timestep."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        betas = np.linspace(self.beta_start**power, self.beta_end**power, self.num_train_timesteps) ** (1 / power)
        return np.cumprod(1 - betas, dtype=np.float64)


DiffusionProcess = Annotated[FlowProcess | VariancePreservingProcess, Field(discriminator="kind")]
