"""A model's `config.json`: architecture, latent statistics and sampling defaults, validated on load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from msf_engine.denoiser_config import DenoiserConfig, PositiveInt
from msf_engine.diffusion_process import DiffusionProcess, FlowProcess
from msf_engine.frozen_config import FrozenConfig
from msf_engine.schedule import Floats, Solver
from msf_scheduler.stage import Stage


class ImageConfig(FrozenConfig):
    """Images are `channels` x `size` x `size`, values in [-1, 1]."""

    size: PositiveInt
    channels: Literal[1, 3, 4]


class AutoencoderConfig(FrozenConfig):
    """diffusers' `AutoencoderKL` (its constructor's arguments in `kl`) behind space-to-depth by `patch_size`."""

    patch_size: PositiveInt
    kl: dict[str, Any]

    @field_validator("kl")
    @classmethod
    def _has_channels(cls, kl: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(kl.get("block_out_channels"), (list, tuple)) or not isinstance(
            kl.get("latent_channels"), int
        ):
            raise ValueError("it needs block_out_channels (a list) and latent_channels (a whole number)")
        return kl

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along one side."""
        return self.patch_size * int(2 ** (len(self.kl["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        return int(self.kl["latent_channels"])


class LatentStatistics(FrozenConfig):
    """Mean and standard deviation per channel, which normalise a stage's latents to unit variance."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must agree")
        return self


class GuidanceConfig(FrozenConfig):
    """Limits of classifier-free guidance: it acts at times inside `interval` (1 is noise), on the first `channels`.

    If the interval is null, nowhere; if the channels are, on all of them.
    """

    interval: tuple[float, float] | None = (0.0, 1.0)
    channels: PositiveInt | None = None

    def contains(self, times: Floats) -> NDArray[np.bool_]:
        """Return whether guidance acts at each time (N,)."""
        if self.interval is None:
            return np.zeros(len(times), bool)
        low, high = self.interval
        return (low <= times) & (times <= high)


class StageConfig(FrozenConfig):
    """One denoising stage. `conditioning_noise` is the level at which it sees the stage before, if there is one."""

    name: Literal[Stage.BASE, Stage.RESIDUAL, Stage.DENOISE]
    denoiser: DenoiserConfig
    statistics: LatentStatistics
    default_num_steps: PositiveInt
    guidance: GuidanceConfig = GuidanceConfig()
    conditioning_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0


TOLD_SCALE_STEP = 0.05  # each scale that a flow map is told has step tables of its own, so they are few


class SamplingConfig(FrozenConfig):
    """Defaults and limits of requests. With solver `flow_map` the denoisers are flow maps, told the guidance scale."""

    solver: Solver
    default_guidance_scale: float
    max_guidance_scale: float = 10.0
    max_num_steps: PositiveInt = 250


class ModelConfig(FrozenConfig):
    """Everything but the weights. `stages` are in order: `denoise` alone, or `base` and `residual`.

    A one-stage model denoises the whole latent; a two-stage model its 2x2 mean, then the detail (`factorization.py`).
    For a DiT of diffusers, the parts that a one-stage model differs in:

        {"format_version": 2, "image": {"size": 256, "channels": 3}, "autoencoder": {"patch_size": 1, "kl": {...}},
         "stages": [{"name": "denoise",
                     "denoiser": {"in_channels": 4, "size": 32, "patch_size": 2, "width": 1152, "depth": 28,
                                  "num_heads": 16, "num_classes": 1000,
                                  "time": {"scale": 1, "downscale_freq_shift": 1}},
                     "statistics": {"mean": [0, 0, 0, 0], "std": [5.4899, 5.4899, 5.4899, 5.4899]},
                     "default_num_steps": 50,
                     "guidance": {"interval": [0, 1], "channels": 3}}],
         "process": {"kind": "variance_preserving", "prediction": "epsilon", ...},
         "sampling": {"solver": "ddim", "default_guidance_scale": 4.0}}

    Files of version 1, which have `base` and `residual` in the place of `stages`, are read as well. `teacher` is the
    version of the same model that this one was distilled from.
    """

    format_version: Literal[2] = 2
    description: str = ""
    image: ImageConfig
    autoencoder: AutoencoderConfig
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, max_length=2)]
    process: DiffusionProcess = FlowProcess()
    sampling: SamplingConfig
    teacher: Annotated[str | None, Field(exclude_if=lambda teacher: teacher is None)] = None

    @property
    def latent_size(self) -> int:
        return self.image.size // self.autoencoder.downsampling

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.latent_channels

    @property
    def is_flow_map(self) -> bool:
        """True if the denoisers are flow maps, which jump from a time to any later one."""
        return self.sampling.solver == "flow_map"

    def told_scale(self, guidance_scale: float) -> float:
        """Return the guidance scale that a flow map is told: a multiple of TOLD_SCALE_STEP, at least 1 (unguided).

        Other networks are told nothing; theirs is 1.
        """
        if not self.is_flow_map:
            return 1.0
        steps = round((min(guidance_scale, self.sampling.max_guidance_scale) - 1) / TOLD_SCALE_STEP)
        return 1 + max(steps, 0) * TOLD_SCALE_STEP

    @property
    def num_classes(self) -> int:
        return self.stages[0].denoiser.num_classes

    @property
    def default_num_steps(self) -> int:
        return sum(stage.default_num_steps for stage in self.stages)

    @property
    def conditioning_noise(self) -> float:
        """Level at which the last stage sees the one before."""
        return self.stages[-1].conditioning_noise

    @property
    def denoising_stages(self) -> tuple[Stage, ...]:
        """Names of the stages before DECODE, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Names of the stages that a sample passes, in order."""
        return (*self.denoising_stages, Stage.DECODE)

    def stage(self, name: Stage) -> StageConfig:
        """Return the config of a denoising stage."""
        return self.stages[self.denoising_stages.index(name)]

    def split_steps(self, num_steps: int) -> tuple[int, ...]:
        """Split `num_steps` among the stages as the defaults do, with at least one for each."""
        if len(self.stages) == 1:
            return (num_steps,)
        share = self.stages[1].default_num_steps / self.default_num_steps
        num_residual_steps = min(max(round(num_steps * share), 1), num_steps - 1)
        return num_steps - num_residual_steps, num_residual_steps

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and fields.get("format_version", 2) == 1:
            return _from_version_1(fields)
        return fields

    @model_validator(mode="after")
    def _stages_fit_the_latent(self) -> Self:
        channels, size = self.latent_channels, self.latent_size
        shapes = {  # channels, those of the condition, size
            (Stage.DENOISE,): [(channels, 0, size)],
            (Stage.BASE, Stage.RESIDUAL): [(channels, 0, size // 2), (3 * channels, channels, size // 2)],
        }
        if self.denoising_stages not in shapes:
            raise ValueError(f"stages are {', '.join(self.denoising_stages)}; allowed: denoise, or base and residual")
        for stage, shape in zip(self.stages, shapes[self.denoising_stages], strict=True):
            denoiser = stage.denoiser
            values_and_requirements = {
                "denoiser.in_channels": (denoiser.in_channels, shape[0]),
                "denoiser.cond_channels": (denoiser.cond_channels, shape[1]),
                "denoiser.size": (denoiser.size, shape[2]),
                "statistics": (len(stage.statistics.mean), shape[0]),
                "denoiser.num_classes": (denoiser.num_classes, self.num_classes),
            }
            for field, (value, required) in values_and_requirements.items():
                if value != required:
                    raise ValueError(
                        f"{stage.name}.{field} is {value}; this latent ({channels} channels, {size}²) needs {required}"
                    )
            if (stage.guidance.channels or 1) > shape[0]:
                raise ValueError(
                    f"{stage.name}.guidance.channels is {stage.guidance.channels}; allowed: 1 to {shape[0]}"
                )
            if stage.conditioning_noise and not shape[1]:
                raise ValueError(f"{stage.name}.conditioning_noise must be 0, as no stage comes before")
        return self

    @model_validator(mode="after")
    def _sampling_fits_the_process(self) -> Self:
        process, sampling = self.process, self.sampling
        if sampling.solver not in process.solvers:
            allowed = ", ".join(process.solvers)
            raise ValueError(f"sampling.solver is {sampling.solver}; allowed with a {process.kind} process: {allowed}")
        if sampling.max_num_steps > process.max_num_steps:
            raise ValueError(
                f"sampling.max_num_steps is {sampling.max_num_steps}; this process allows {process.max_num_steps}"
            )
        if self.default_num_steps > sampling.max_num_steps:
            raise ValueError(
                f"default_num_steps is {self.default_num_steps}; sampling.max_num_steps is {sampling.max_num_steps}"
            )
        if self.is_flow_map:
            if any(stage.guidance.interval is not None for stage in self.stages):
                raise ValueError("guidance.interval must be null in every stage of a flow map, which is told the scale")
            if not isinstance(process, FlowProcess) or process.data_at != 0:
                raise ValueError("process.data_at must be 0 for flow maps")
        return self


def _from_version_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of version 2 for those of version 1."""
    moved = ("base", "residual", "conditioning_noise", "sampling")
    for name in ("base", "residual", "sampling"):
        if not isinstance(fields.get(name), Mapping):
            raise ValueError(f"{name} must be an object")
    base, residual, sampling = ({**fields[name]} for name in ("base", "residual", "sampling"))
    return {
        **{name: value for name, value in fields.items() if name not in moved},
        "format_version": 2,
        "stages": [
            {"name": "base", **base},
            {"name": "residual", **residual, "conditioning_noise": fields.get("conditioning_noise")},
        ],
        "process": {"kind": "flow", "shift": sampling.pop("time_shift", 1.0)},
        "sampling": sampling,
    }
