"""Architecture of a denoiser, as a model's `config.json` has it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from msf_engine.frozen_config import FrozenConfig

PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]  # a typing error must not take all memory


class TimeConfig(FrozenConfig):
    """Sinusoidal features of a denoiser's times: cosines, then sines, of scale · t · 10000^(-i / (128 - shift)).

    `scale` is 1000 for networks that were trained on 1000 t in [0, 1], else 1: SiT's time is t itself, and that of a
    variance-preserving process an integer. The other field is named as in diffusers' `Timesteps`.
    """

    scale: Literal[1, 1000] = 1000
    downscale_freq_shift: Literal[0, 1] = 0


class DenoiserVariant(FrozenConfig):
    """Choices in which published DiTs differ; the defaults are those of `msf train`.

    `positions`: the sine-cosine table with the features of the row or of the column first, or a table among the
    weights.
    """

    positions: Literal["rows_first", "columns_first", "stored"] = "rows_first"
    rotary: bool = False  # rotates queries and keys by their position, in addition
    norm: Literal["layer", "rms"] = "layer"
    qk_norm: Literal["layer", "rms"] | None = None
    mlp: Literal["gelu", "swiglu"] = "gelu"


class DenoiserConfig(FrozenConfig):
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
