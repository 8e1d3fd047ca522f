"""A model's `config.json`: architecture, latent statistics and sampling defaults, validated on load."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from msf_engine.schedule import Solver
from msf_scheduler.stage import Stage

PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]  # a typing error must not take all memory


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageConfig(_Config):
    """Images are `channels` x `size` x `size`, values in [-1, 1]."""

    size: PositiveInt
    channels: Literal[1, 3, 4]


class AutoencoderConfig(_Config):
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


class LatentStatistics(_Config):
    """Mean and standard deviation per channel, which normalise a stage's latents to unit variance."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must agree")
        return self


class TimeConfig(_Config):
    """Sinusoidal features of a denoiser's times: cosines, then sines, of scale · t · 10000^(-i / (128 - shift)).

    `scale` is 1000 for networks that were trained on 1000 t in [0, 1], else 1: SiT's time is t itself, and that of a
    variance-preserving process an integer. The other field is named as in diffusers' `Timesteps`.
    """

    scale: Literal[1, 1000] = 1000
    downscale_freq_shift: Literal[0, 1] = 0


class DenoiserVariant(_Config):
    """Choices in which published DiTs differ; the defaults are those of `msf train`.

    `positions`: the sine-cosine table with the features of the row or of the column first, or a table among the
    weights.
    """

    positions: Literal["rows_first", "columns_first", "stored"] = "rows_first"
    rotary: bool = False  # rotates queries and keys by their position, in addition
    norm: Literal["layer", "rms"] = "layer"
    qk_norm: Literal["layer", "rms"] | None = None
    mlp: Literal["gelu", "swiglu"] = "gelu"


class DenoiserConfig(_Config):
    """A DiT (arXiv 2212.09748): `depth` adaLN-Zero blocks of `width`, over `size` x `size` latents in patches."""

    in_channels: PositiveInt  # noisy latent channels
    cond_channels: Annotated[int, Field(ge=0)] = 0  # channels of the conditioning latent
    size: PositiveInt
    patch_size: PositiveInt = 1
    width: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: float = 4.0
    num_classes: PositiveInt
    time: Annotated[TimeConfig, Field(exclude_if=lambda time: time == TimeConfig())] = TimeConfig()
    variant: Annotated[DenoiserVariant, Field(exclude_if=lambda variant: variant == DenoiserVariant())] = (
        DenoiserVariant()
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.size % self.patch_size:
            raise ValueError(f"size {self.size} must be a multiple of patch_size {self.patch_size}")
        if self.variant.rotary and self.width // self.num_heads % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 num_heads ({self.num_heads}) to be rotary")
        return self


class GuidanceConfig(_Config):
    """Timesteps at which classifier-free guidance acts: those inside `interval` (t = 1 is noise), on all channels.

    If the interval is null, none.
    """

    interval: tuple[float, float] | None = (0.0, 1.0)

    @property
    def is_everywhere(self) -> bool:
        return self.interval == (0.0, 1.0)

    def contains(self, t: float) -> bool:
        """Return whether guidance acts at timestep `t`."""
        if self.interval is None:
            return False
        low, high = self.interval
        return low <= t <= high

    def scale_at(self, t: float, scale: float) -> float:
        """Return the guidance scale at timestep `t`: `scale` inside the interval, else 1."""
        return scale if self.contains(t) else 1.0


class StageConfig(_Config):
    """One denoising stage."""

    denoiser: DenoiserConfig
    statistics: LatentStatistics
    default_num_steps: PositiveInt
    guidance: GuidanceConfig = GuidanceConfig()


TOLD_SCALE_STEP = 0.05  # each scale that a flow map is told has step tables of its own, so they are few


class SamplingConfig(_Config):
    """Defaults and limits of requests. With solver `flow_map` the denoisers are flow maps, told the guidance scale."""

    solver: Solver
    time_shift: Annotated[float, Field(gt=0)] = 1.0
    default_guidance_scale: float
    max_guidance_scale: float = 10.0
    max_num_steps: PositiveInt = 250


class ModelConfig(_Config):
    """Everything but the weights. `conditioning_noise` is the level at which the residual stage sees the base."""

    format_version: Literal[1] = 1
    description: str = ""
    image: ImageConfig
    autoencoder: AutoencoderConfig
    base: StageConfig
    residual: StageConfig
    conditioning_noise: Annotated[float, Field(ge=0, lt=1)]
    sampling: SamplingConfig

    @property
    def latent_size(self) -> int:
        return self.image.size // self.autoencoder.downsampling

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.latent_channels

    @property
    def is_flow_map(self) -> bool:
        """True if the denoisers are flow maps, which jump from a timestep to any later one."""
        return self.sampling.solver == "flow_map"

    def told_scale(self, guidance_scale: float) -> float:
        """Return the guidance scale that a flow map is told: a multiple of TOLD_SCALE_STEP, at least 1 (unguided).

        Velocity networks are told nothing; theirs is 1.
        """
        if not self.is_flow_map:
            return 1.0
        steps = round((min(guidance_scale, self.sampling.max_guidance_scale) - 1) / TOLD_SCALE_STEP)
        return 1 + max(steps, 0) * TOLD_SCALE_STEP

    @property
    def num_classes(self) -> int:
        return self.base.denoiser.num_classes

    @property
    def default_num_steps(self) -> int:
        return self.base.default_num_steps + self.residual.default_num_steps

    def stage(self, stage: Stage) -> StageConfig:
        """Return the config of a denoising stage."""
        return {Stage.BASE: self.base, Stage.RESIDUAL: self.residual}[stage]

    def split_steps(self, num_steps: int) -> tuple[int, int]:
        """Split `num_steps` (at least 2) between BASE and RESIDUAL as the defaults do, with at least one for each."""
        share = self.residual.default_num_steps / self.default_num_steps
        num_residual_steps = min(max(round(num_steps * share), 1), num_steps - 1)
        return num_steps - num_residual_steps, num_residual_steps

    @model_validator(mode="after")
    def _stages_fit_the_latent(self) -> Self:
        channels, half = self.latent_channels, self.latent_size // 2
        values_and_requirements = {
            "base.denoiser.in_channels": (self.base.denoiser.in_channels, channels),
            "base.denoiser.cond_channels": (self.base.denoiser.cond_channels, 0),
            "base.denoiser.size": (self.base.denoiser.size, half),
            "base.statistics": (len(self.base.statistics.mean), channels),
            "residual.denoiser.in_channels": (self.residual.denoiser.in_channels, 3 * channels),
            "residual.denoiser.cond_channels": (self.residual.denoiser.cond_channels, channels),
            "residual.denoiser.size": (self.residual.denoiser.size, half),
            "residual.statistics": (len(self.residual.statistics.mean), 3 * channels),
            "residual.denoiser.num_classes": (self.residual.denoiser.num_classes, self.num_classes),
        }
        if self.is_flow_map and any(stage.guidance.interval is not None for stage in (self.base, self.residual)):
            raise ValueError("guidance.interval must be null in both stages of a flow map, which is told the scale")
        for name, (value, required) in values_and_requirements.items():
            if value != required:
                raise ValueError(f"{name} is {value}; this latent ({channels} channels, {2 * half}²) needs {required}")
        return self
