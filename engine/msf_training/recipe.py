"""What `msf train` makes of a folder of images: everything but the images, in one TOML file."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from msf_engine.config import AutoencoderConfig, DenoiserConfig, GuidanceConfig
from msf_engine.denoiser import SIZES
from msf_engine.schedule import Solver
from msf_training.trainer import LoopConfig

PositiveInt = Annotated[int, Field(gt=0)]
_SHIPPED = files("msf_training") / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Part):
    """How long a network is trained, and how fast. The learning rate is constant but for the last `cooldown` of it."""

    num_iterations: PositiveInt
    batch_size: PositiveInt  # of one process
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    cooldown: Annotated[float, Field(gt=0, le=1)] = 0.2
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999  # the average that is served
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 300.0

    def loop(self) -> LoopConfig:
        return LoopConfig(
            num_iterations=self.num_iterations,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            cooldown=self.cooldown,
            ema_decays=(self.ema,),
            checkpoint_every_s=self.checkpoint_every_s,
        )


class AutoencoderRecipe(_Part):
    """An `AutoencoderKL` behind space-to-depth: each of `widths` but the last halves the resolution once more."""

    patch_size: PositiveInt = 1
    latent_channels: PositiveInt = 4
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    layers_per_block: PositiveInt = 1
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    residual_share_weight: Annotated[float, Field(ge=0)] = 0.03
    fit: Fit

    def config(self, image_size: int, channels: int) -> AutoencoderConfig:
        depth = len(self.widths)
        patch_channels = channels * self.patch_size**2
        return AutoencoderConfig(
            patch_size=self.patch_size,
            kl={
                "in_channels": patch_channels,
                "out_channels": patch_channels,
                "latent_channels": self.latent_channels,
                "block_out_channels": list(self.widths),
                "down_block_types": ["DownEncoderBlock2D"] * depth,
                "up_block_types": ["UpDecoderBlock2D"] * depth,
                "layers_per_block": self.layers_per_block,
                "norm_num_groups": min(32, *self.widths),
                "sample_size": image_size // self.patch_size,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
        )


class StageRecipe(_Part):
    """A denoiser: by a `size` of DiT's (S, B, L, XL), or by `width`, `depth` and `num_heads`."""

    size: Literal["S", "B", "L", "XL"] | None = None
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    patch_size: PositiveInt = 1
    num_steps: PositiveInt
    guided: bool = True  # whether a request's guidance scale acts on this stage
    fit: Fit

    @property
    def guidance(self) -> GuidanceConfig:
        return GuidanceConfig() if self.guided else GuidanceConfig(interval=None)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        numbers = (self.width, self.depth, self.num_heads)
        if (self.size is None) is any(number is None for number in numbers) or (self.size and any(numbers)):
            raise ValueError("needs either size (S, B, L or XL) or width, depth and num_heads")
        return self

    def config(self, in_channels: int, cond_channels: int, grid: int, num_classes: int) -> DenoiserConfig:
        width, depth, num_heads = SIZES[self.size] if self.size else (self.width, self.depth, self.num_heads)
        assert width is not None
        assert depth is not None
        assert num_heads is not None
        return DenoiserConfig(
            in_channels=in_channels,
            cond_channels=cond_channels,
            size=grid,
            patch_size=self.patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
        )


class Recipe(_Part):
    """The whole of it. Images are cropped to squares of `image_size`, transparent ones laid on `background`."""

    name: str
    description: str
    image_size: PositiveInt
    channels: Literal[1, 3] = 3
    background: Literal["white", "black"] = "white"
    held_out_percent: Annotated[int, Field(ge=0, lt=100)] = 5
    balance: Annotated[float, Field(ge=0, le=1)] = 1.0  # a class of n images is drawn as often as n^balance
    flip: bool = False
    never_flipped: tuple[str, ...] = ()  # classes, of `flip`
    shift_pixels: Annotated[int, Field(ge=0)] = 0
    num_variants: PositiveInt = 1  # of each image among the cached latents: flipped, and shifted from the third on
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    named_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0  # above 0, pictures' own names are labels too
    conditioning_noise: Annotated[float, Field(ge=0, lt=1)] = 0.1
    guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    solver: Solver = "ab2"
    autoencoder: AutoencoderRecipe
    base: StageRecipe
    residual: StageRecipe

    @model_validator(mode="after")
    def _the_latent_halves(self) -> Self:
        pixels = 2 * self.autoencoder.patch_size * 2 ** (len(self.autoencoder.widths) - 1)
        if self.image_size % pixels:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {pixels}, the pixels of a base position"
            )
        return self


def read_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by name, or one's own by path. Raises ValueError that names the field, or what there is."""
    own = Path(name_or_file)
    shipped = _SHIPPED / f"{name_or_file}.toml"
    if own.suffix == ".toml" and own.is_file():
        text = own.read_text()
    elif name_or_file in shipped_recipes():
        text = shipped.read_text()
    else:
        known = ", ".join(shipped_recipes())
        raise ValueError(f"{name_or_file!r} is no recipe; allowed: {known}, or a TOML file")
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name_or_file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"recipe {name_or_file}: {where or 'recipe'}: {first['msg']}") from error


def shipped_recipes() -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in _SHIPPED.iterdir() if file.name.endswith(".toml"))
