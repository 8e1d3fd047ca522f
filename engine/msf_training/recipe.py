"""Recipes: all settings with which `msf train` turns class folders into a model, in one TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from msf_engine.config import (
    AutoencoderConfig,
    GuidanceConfig,
    ImageConfig,
    LatentStatistics,
    ModelConfig,
    SamplingConfig,
    StageConfig,
)
from msf_engine.denoiser import SIZES
from msf_engine.denoiser_config import DenoiserConfig
from msf_scheduler.stage import Stage
from msf_training.image_files import ImageFormat
from msf_training.trainer import TrainerConfig

PositiveInt = Annotated[int, Field(gt=0)]
RecipeKind = TypeVar("RecipeKind", bound=BaseModel)
StageKind = TypeVar("StageKind", bound=BaseModel)
_SHIPPED = files("msf_training") / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(TrainerConfig):
    """Training of one network; the average of its weights is what is served."""

    batch_size: PositiveInt  # of one process


class AutoencoderRecipe(_Part):
    """An `AutoencoderKL` after space-to-depth: each of `widths` but the last halves the resolution once more."""

    patch_size: PositiveInt = 1
    latent_channels: PositiveInt = 4
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 32
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    residual_share_weight: Annotated[float, Field(ge=0)] = 0.03
    fit: Fit

    def config(self, image_size: int, channels: int) -> AutoencoderConfig:
        """Return the config for square images of this size."""
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
                "norm_num_groups": min(self.norm_num_groups, *self.widths),
                "sample_size": image_size // self.patch_size,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
        )


class StageRecipe(_Part):
    """A denoiser, by a DiT `size` (S, B, L, XL) or by `width`, `depth` and `num_heads`."""

    size: Literal["S", "B", "L", "XL"] | None = None
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    patch_size: PositiveInt = 1
    num_steps: PositiveInt
    guided: bool = True  # whether a request's guidance scale acts on this stage
    fit: Fit

    @model_validator(mode="after")
    def _size_or_numbers(self) -> Self:
        numbers = (self.width, self.depth, self.num_heads)
        if (self.size is None) is any(number is None for number in numbers) or (self.size and any(numbers)):
            raise ValueError("needs either size (S, B, L or XL) or width, depth and num_heads")
        return self

    def denoiser_config(self, in_channels: int, cond_channels: int, grid: int, num_classes: int) -> DenoiserConfig:
        """Return the denoiser's config for latents of `grid` x `grid` positions."""
        numbers = (self.width, self.depth, self.num_heads)
        names = ("width", "depth", "num_heads")
        return DenoiserConfig(
            in_channels=in_channels,
            cond_channels=cond_channels,
            size=grid,
            patch_size=self.patch_size,
            num_classes=num_classes,
            **dict(zip(names, SIZES[self.size] if self.size else numbers, strict=True)),
        )

    def stage_config(
        self, name: Stage, denoiser: DenoiserConfig, statistics: LatentStatistics, conditioning_noise: float
    ) -> StageConfig:
        """Return the stage's config with this denoiser."""
        return StageConfig(
            name=name,
            conditioning_noise=conditioning_noise if denoiser.cond_channels else 0.0,
            denoiser=denoiser,
            statistics=statistics,
            default_num_steps=self.num_steps,
            guidance=GuidanceConfig() if self.guided else GuidanceConfig(interval=None),
        )


class Recipe(_Part):
    """A whole recipe. Images are cropped to squares of `image_size`, transparent ones laid on `background`.

    The denoising stages are `base` and `residual`, or `denoise` alone: a DiT of the whole latent.
    """

    name: str
    description: str
    image_size: PositiveInt
    channels: Literal[1, 3] = 3
    background: Literal["white", "black"] = "white"
    held_out_percent: Annotated[int, Field(ge=0, lt=100)] = 5
    balance: Annotated[float, Field(ge=0, le=1)] = 1.0  # a class of n images is drawn in proportion to n^balance
    flip: bool = False
    never_flipped: tuple[str, ...] = ()  # classes that `flip` leaves alone
    shift_pixels: Annotated[int, Field(ge=0)] = 0
    num_variants: PositiveInt = 1  # of each image among the cached latents: flipped, and shifted from the third on
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    named_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0  # above 0, image names are labels too
    conditioning_noise: Annotated[float, Field(ge=0, lt=1)] = 0.1
    guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    solver: Literal["euler", "ab2"] = "ab2"
    autoencoder: AutoencoderRecipe
    base: StageRecipe | None = None
    residual: StageRecipe | None = None
    denoise: StageRecipe | None = None

    @property
    def stages(self) -> dict[Stage, StageRecipe]:
        """Recipes of the denoising stages, in order."""
        return stages_of({Stage.BASE: self.base, Stage.RESIDUAL: self.residual, Stage.DENOISE: self.denoise})

    @model_validator(mode="after")
    def _image_size_fits(self) -> Self:
        pixels = len(self.stages) * self.autoencoder.patch_size * 2 ** (len(self.autoencoder.widths) - 1)
        if self.image_size % pixels:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {pixels}, the pixels of a latent position"
            )
        return self

    @property
    def image_format(self) -> ImageFormat:
        """Format that training images are converted to."""
        return ImageFormat(self.image_size, self.channels, self.background)

    def may_flip(self, labels: Sequence[str]) -> list[bool]:
        """Tell for each class whether its images are flipped."""
        return [self.flip and label not in self.never_flipped for label in labels]

    def autoencoder_config(self) -> AutoencoderConfig:
        """Return the autoencoder's config for the recipe's images."""
        return self.autoencoder.config(self.image_size, self.channels)

    def complete(
        self, autoencoder: AutoencoderConfig, statistics: Sequence[LatentStatistics], num_classes: int
    ) -> ModelConfig:
        """Return the config of the model, given what depends on the data: the `statistics` of each stage."""
        channels = autoencoder.latent_channels
        grid = self.image_size // autoencoder.downsampling // len(self.stages)
        shapes = ((channels, 0), (3 * channels, channels))  # channels and those of the condition
        stages = tuple(
            recipe.stage_config(
                name, recipe.denoiser_config(*shape, grid, num_classes), measured, self.conditioning_noise
            )
            for (name, recipe), shape, measured in zip(self.stages.items(), shapes, statistics, strict=False)
        )
        return ModelConfig(
            description=self.description,
            image=ImageConfig(size=self.image_size, channels=self.channels),
            autoencoder=autoencoder,
            stages=stages,
            sampling=SamplingConfig(solver=self.solver, default_guidance_scale=self.guidance_scale),
        )


def stages_of(recipes: Mapping[Stage, StageKind | None]) -> dict[Stage, StageKind]:
    """Return the recipes of the stages that a model has. Raises ValueError unless they make a model."""
    stages = {stage: recipe for stage, recipe in recipes.items() if recipe is not None}
    if tuple(stages) not in ((Stage.BASE, Stage.RESIDUAL), (Stage.DENOISE,)):
        raise ValueError(f"stages are {', '.join(stages) or 'none'}; allowed: base and residual, or denoise")
    return stages


def read_recipe(name_or_file: str) -> Recipe:
    """Read a shipped recipe by name, or a TOML file. Raises ValueError that names the field, or lists the recipes."""
    return read_toml(Recipe, _SHIPPED, name_or_file)


def read_toml(kind: type[RecipeKind], shipped: Traversable, name_or_file: str) -> RecipeKind:
    """Read a recipe of any kind, as `read_recipe` does."""
    file = Path(name_or_file)
    names = toml_names(shipped)
    if file.suffix == ".toml" and file.is_file():
        text = file.read_text()
    elif name_or_file in names:
        text = (shipped / f"{name_or_file}.toml").read_text()
    else:
        allowed = ", ".join(names)
        raise ValueError(f"unknown recipe {name_or_file!r}; allowed: {allowed}, or the path of a TOML file")
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name_or_file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"recipe {name_or_file}: {where or 'recipe'}: {first['msg']}") from error


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return toml_names(_SHIPPED)


def toml_names(folder: Traversable) -> list[str]:
    """Return the names of a folder's recipes."""
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))
